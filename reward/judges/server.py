"""Talking to an OpenAI-compatible server: attempts, waits between them, and errors that name the remedy."""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import httpx2
from anyio.from_thread import start_blocking_portal

from reward.config import JudgeConfig

if TYPE_CHECKING:
    from reward.judges.server_process import ServerProcess

Result = TypeVar("Result")

_AGAIN = {408, 409, 425, 429}  # and everything from 500 on
_LONGEST_WAIT = 600.0  # seconds; a server that asks for more (a spent daily quota) ends the call instead
_EXCERPT = 400  # characters of a server's words in our messages

_TOO_MUCH = (
    "lower judge.num_frames, judge.num_segment_frames, judge.frame_size or judge.max_new_tokens, or start "
    "the server with more room (vLLM: --max-model-len, --limit-mm-per-prompt)"
)
# what a 400 or 422 is about, told by the server's words, and what to do; the first that fits
_REMEDIES = (
    (
        r"not a multi-?modal|image_url is only supported|images? (input )?(is|are) not supported|"
        r"not support (images?|vision|multi-?modal)|mmproj",
        "the model behind judge.model sees no images; serve one with vision",
    ),
    (r"max_completion_tokens", "it takes no max_tokens, which retake sends; choose another judge.model"),
    (r"context|too long|too large|too many|image|multi-?modal|max_tokens", _TOO_MUCH),
    (r"logprob", "set judge.server.logprobs to false"),
    (r"temperature", "change judge.temperature"),
    (r"\bn\b|choices", "set judge.server.requests to one_vote"),
)
_REMEDY = "compare judge.model and judge.server with what the server takes"


class ServerUnavailable(RuntimeError):
    """All attempts failed. Stages keep the shards that were asked before and go on from there."""


class Server:
    """One server during one call of a judge. Use inside `async with`, in one event loop.

    `process` is the server's, where retake starts it: it is then made ready before every attempt.
    `draw` gives uniform numbers in [0, 1) for the jitter, `sleep` waits for seconds; tests replace both.
    """

    def __init__(
        self,
        config: JudgeConfig,
        *,
        process: ServerProcess | None = None,
        draw: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """Raises ValueError where the environment lacks the key."""
        assert config.server is not None, "JudgeConfig requires a server for type openai"
        assert (config.server.base_url is None) == (process is not None), "one or the other"
        self.config, self.settings, self.process = config, config.server, process
        self._key = self.settings.api_key()
        self._draw, self._sleep = draw, sleep
        self._client: httpx2.AsyncClient | None = None
        self._hopeless: Exception | None = None  # why the process cannot be made ready
        # it logs a line for every request, which would fill the stage's log
        logging.getLogger("httpx2").setLevel(logging.WARNING)

    @property
    def url(self) -> str:
        return self.settings.base_url or (self.process.url if self.process is not None else "")

    async def __aenter__(self) -> Server:
        self._one_at_a_time, self._hopeless = anyio.Lock(), None
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key.get_secret_value()}"}
        limits = httpx2.Limits(
            max_connections=self.settings.max_concurrency,
            max_keepalive_connections=self.settings.max_concurrency,
        )
        # no timeout of its own: an attempt has one for everything together
        own = self.process is not None  # no proxy stands between a machine and itself
        self._client = httpx2.AsyncClient(headers=headers, limits=limits, timeout=None, trust_env=not own)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._client is not None
        with anyio.CancelScope(shield=True):
            await self._client.aclose()
        self._client = None

    async def complete(self, body: bytes) -> dict[str, Any]:
        """The chat completion for a JSON `body`.

        Raises ServerUnavailable when the retries run out, ValueError for what trying again does not mend.
        """
        response = await self._attempts("POST", "/chat/completions", body)
        if response.is_success:
            return self._json_of(response)
        raise await self._refusal(response)

    async def models(self) -> list[str] | None:
        """The ids listed at /models, or None where the server has no such list."""
        response = await self._attempts("GET", "/models")
        if not response.is_success:
            return None
        try:
            return [str(model["id"]) for model in response.json()["data"]]
        except (ValueError, KeyError, TypeError):
            return None

    def quote(self, text: str) -> str:
        """A server's words for our messages: one line, not long, and without the key if it was echoed."""
        if self._key is not None:
            text = text.replace(self._key.get_secret_value(), "[key]")
        text = " ".join(text.split())
        return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}…"

    async def _attempts(self, method: str, path: str, body: bytes | None = None) -> httpx2.Response:
        """The first response that is no reason to try again."""
        for attempt in range(self.settings.max_retries + 1):
            url = await self._address(after_trouble=attempt > 0)
            response, trouble = await self._attempt(method, url + path, body)
            if response is not None and not _try_again(response):
                return response
            asked = 0.0 if response is None else _retry_after(response)
            if asked > _LONGEST_WAIT:
                trouble += f" and asks to wait {asked:.0f} s"
                break
            if attempt < self.settings.max_retries:
                await self._sleep(asked + self._backoff(attempt))
        key, remedy = "judge.server.base_url", "See that it runs"
        if self.process is not None:
            key, remedy = "judge.vllm", f"See its log, {self.process.log_path}"
        raise ServerUnavailable(
            f"the server at {self.url} ({key}) did not answer: {trouble}, after {attempt + 1} attempts. "
            f"{remedy}; the same command resumes with what is still unasked"
        )

    async def _address(self, *, after_trouble: bool) -> str:
        """Where to send the next attempt, once a server is there that takes it."""
        if self.process is None:
            return self.url
        async with self._one_at_a_time:  # the first of many requests that failed starts it again for all
            if self._hopeless is not None:
                raise self._hopeless
            try:
                return await self.process.ready(after_trouble=after_trouble)
            except Exception as error:
                self._hopeless = error  # the requests that wait here must not try in their turn
                raise

    async def _attempt(self, method: str, url: str, body: bytes | None) -> tuple[httpx2.Response | None, str]:
        """The response, or None, and what is wrong with it in words."""
        assert self._client is not None, "use the server inside async with"
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            with anyio.fail_after(self.settings.timeout_seconds):
                response = await self._client.request(method, url, content=body, headers=headers)
        except TimeoutError:
            limit = f"{self.settings.timeout_seconds:g} s (judge.server.timeout_seconds)"
            return None, f"no answer within {limit}"
        except httpx2.RequestError as error:
            return None, self.quote(f"{type(error).__name__}: {error}")
        return response, f"status {response.status_code} ({self.quote(_words_of(response))})"

    def _backoff(self, attempt: int) -> float:
        """Seconds: full jitter over an exponential that is capped."""
        widest = self.settings.backoff_seconds * 2.0 ** min(attempt, 32)
        return self._draw() * min(widest, self.settings.max_backoff_seconds)

    def _json_of(self, response: httpx2.Response) -> dict[str, Any]:
        try:
            found = response.json()
        except ValueError:
            found = None
        if not isinstance(found, dict) or not isinstance(found.get("choices"), list):
            raise ValueError(
                f"the server at {self.url} answered with no chat completion ({self.quote(response.text)}); "
                "check judge.server.base_url, which usually ends in /v1"
            )
        return found

    async def _refusal(self, response: httpx2.Response) -> ValueError:
        """The error for a status that would come back at every attempt."""
        status = response.status_code
        said = f"the server at {self.url} answered {status} ({self.quote(_words_of(response))})"
        if status in (401, 403):
            return ValueError(f"{said}: {self._about_the_key()}")
        if status == 404:
            return ValueError(f"{said}: {await self._about_the_model()}")
        if status == 413:
            return ValueError(f"{said}: {_TOO_MUCH}")
        if status in (400, 422):
            words = _words_of(response).lower()
            fitting = (remedy for pattern, remedy in _REMEDIES if re.search(pattern, words))
            return ValueError(f"{said}: {next(fitting, _REMEDY)}")
        return ValueError(f"{said}: check judge.server.base_url, which usually ends in /v1")

    def _about_the_key(self) -> str:
        if self.settings.api_key_env is None:
            return "set judge.server.api_key_env to the name of the environment variable that holds the key"
        return (
            f"the key in the environment variable {self.settings.api_key_env} (judge.server.api_key_env) is "
            "not taken; export one that is"
        )

    async def _about_the_model(self) -> str:
        wanted = f"judge.model {self.config.model!r} or judge.server.base_url {self.url} is wrong"
        try:
            listed = await self.models()
        except ServerUnavailable:
            listed = None
        if not listed:
            return f"{wanted}; the server lists no models at {self.url}/models, base_url usually ends in /v1"
        names = self.quote(", ".join(sorted(listed)))
        return f"{wanted}; the server lists: {names}"


def run_apart(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run `work` in an event loop of a thread of its own and wait for it.

    So a caller may have an event loop already. A signal handler that raises in the waiting thread cancels
    the work and is not held up by it.
    """
    with start_blocking_portal() as portal:
        future = portal.start_task_soon(work)
        try:
            return future.result()
        finally:
            future.cancel()  # of no effect on work that is done


def same_model(wanted: str, served: str) -> bool:
    """Whether two names are of one model, as far as names tell.

    Equal but for: capitals; folders or an organisation before one of them (x/y/name and name); a revision
    or tag after one of them (name@main, name:latest); a dated version (name-0613, name-2024-08-06).
    """
    short, long = sorted((wanted.strip("/").lower(), served.strip("/").lower()), key=len)
    return any(
        name == short or name.endswith(f"/{short}") or short.endswith(f"/{name}")
        for name in (long, re.sub(r"[@:][^/@:]*$", "", long), re.sub(r"-\d{3,}(-\d+)*$", "", long))
    )


def _try_again(response: httpx2.Response) -> bool:
    return response.status_code in _AGAIN or response.status_code >= 500


def _retry_after(response: httpx2.Response) -> float:
    """Seconds that the server asks to wait, from either form of Retry-After; 0 without one that is valid."""
    value = response.headers.get("retry-after", "").strip()
    try:
        if re.fullmatch(r"\d+(\.\d+)?", value):
            return float(value)
        when = parsedate_to_datetime(value)
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        return max(0.0, (when - datetime.now(UTC)).total_seconds())
    except ValueError:
        return 0.0


def _words_of(response: httpx2.Response) -> str:
    """The message inside the error object that servers send, else the whole text."""
    try:
        found = response.json()
    except ValueError:
        return response.text
    if isinstance(found, dict):
        inner = found.get("error", found)
        if isinstance(inner, dict):
            inner = inner.get("message") or inner.get("detail") or inner
        return inner if isinstance(inner, str) else json.dumps(inner)
    return response.text
