"""A judge behind any server that speaks OpenAI's chat completions: vLLM, SGLang, transformers serve, hosted.

The message is the in-process judge's own: same wording, same frames at the same size and times. Frames go as
PNG inside the request, without file name or metadata, so that nothing but content tells clips apart.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
from PIL import Image

from reward.config import JudgeConfig, ServerConfig, without_transport
from reward.frames import ClipCache, instructions_of, num_shown, show, shown_json
from reward.judge import check_votes
from reward.judges.server import Server, run_apart, same_model
from reward.question import Ask, ClipReader, Reply, Vote, build_message, vote_of
from reward.replies import ReplyFormat, format_of

if TYPE_CHECKING:
    from reward.judges.server_process import ServerProcess

# settings that change no vote, or that a server does not hear of
_NOT_IDENTITY = {"batch_size", "dtype", "trust_remote_code", "target", "answers", "scorer", "vllm"}


@dataclass(frozen=True)
class ShownClip:
    """The frames of one clip as they are sent: `times` in seconds, `size` height and width, a PNG in each of
    `urls`."""

    times: list[float]
    size: tuple[int, int]
    urls: list[str]

    @property
    def num_bytes(self) -> int:
        return sum(len(url) for url in self.urls)


class OpenAIJudge:
    """A judge for `judge.type: openai`; `judge.model` is the server's name for the model.

    `served` is that name where it is another one, `process` the server where retake starts it. `draw` and
    `sleep` are the jitter and the waits of reward.judges.server.Server.
    """

    def __init__(
        self,
        config: JudgeConfig,
        *,
        served: str | None = None,
        process: ServerProcess | None = None,
        draw: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """Raises ValueError where the environment lacks the key. Does not call the server."""
        assert config.model is not None and config.server is not None, "JudgeConfig requires both for openai"
        self.config = config
        self.settings: ServerConfig = config.server
        self.model: str = served or config.model
        self.server = Server(config, process=process, draw=draw, sleep=sleep)
        self.instructions = instructions_of(config)
        self.format = format_of(config)
        self._clips: ClipCache[ShownClip] = ClipCache(self._show)
        self._identity: str | None = None

    def vote(self, asks: Sequence[Ask]) -> list[Vote]:
        """One vote for each ask, in the same order.

        Raises ServerUnavailable when the server stays away, ValueError for what it will never answer.
        """
        if not asks:
            return []
        votes = run_apart(lambda: self._ask_all(asks))
        return check_votes(asks, [votes[i] for i in range(len(asks))], f"the server at {self.server.url}")

    def identity(self) -> str:
        """sha256 of the settings that decide votes, the server's address and what it lists under the name.

        The weights behind the name are the server's affair: they can change and this does not show it.
        """
        if self._identity is None:
            settings = self.config.model_dump(mode="json", exclude=_NOT_IDENTITY)
            settings["server"] = without_transport(settings["server"])
            settings["listed"] = run_apart(self._listed)
            self._identity = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return self._identity

    def close(self) -> None:
        """Forget the encoded frames, and end a server of our own; no connection outlives a call."""
        self._clips.clear()
        if self.server.process is not None:
            self.server.process.close()

    async def _listed(self) -> list[str] | None:
        async with self.server as server:
            listed = await server.models()
        return None if listed is None else sorted(name for name in listed if same_model(self.model, name))

    async def _ask_all(self, asks: Sequence[Ask]) -> dict[int, Vote]:
        """The votes by index of their ask. The first error ends all requests that are under way."""
        votes: dict[int, Vote] = {}
        slots = anyio.CapacityLimiter(self.settings.max_concurrency)
        # in a thread, so that replies are read meanwhile; in one, since the cache is for one at a time
        encoding = anyio.CapacityLimiter(1)

        async def request(rows: list[int]) -> None:
            async with slots:
                body, shown = await anyio.to_thread.run_sync(
                    self._body, asks[rows[0]], len(rows), limiter=encoding
                )
                completion = await self.server.complete(body)
            replies = self._replies(completion, [asks[i] for i in rows], shown)
            votes.update(zip(rows, replies, strict=True))

        try:
            async with self.server, anyio.create_task_group() as group:
                for rows in self._requests(asks):
                    group.start_soon(request, rows)
        except ExceptionGroup as errors:
            first = errors.exceptions[0]
            raise first from first.__cause__
        return votes

    def _requests(self, asks: Sequence[Ask]) -> list[list[int]]:
        """Indices of the asks that one request carries."""
        if self.settings.requests == "one_vote":
            return [[i] for i in range(len(asks))]
        orders: dict[tuple[str, bool], list[int]] = {}
        for i, ask in enumerate(asks):
            orders.setdefault((ask.question.id, ask.swapped), []).append(i)
        return list(orders.values())

    def _body(self, ask: Ask, num_votes: int) -> tuple[bytes, str]:
        """The request as JSON, and Vote.shown; `ask` stands for all votes that it carries."""
        num = num_shown(self.config, ask.question.segment is not None)
        shown = [self._clips.get(reader, num) for reader in ask.shown]
        content = build_message(
            ask,
            self.instructions,
            (shown[0].times, shown[1].times),
            time_stamps=self.config.time_stamps,
            special_tokens=self.settings.special_tokens,
            layout=self.format.layout,
        )
        urls = iter(url for clip in shown for url in clip.urls)
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": [_part(block, urls) for block in content]}],
            "temperature": self.config.temperature,
            "top_p": 1.0,  # else servers take what the model's own generation config says
            "max_tokens": self.config.max_new_tokens,
            "seed": request_seed(ask),
            **self.settings.extra_body,
        }
        if num_votes > 1:
            body["n"] = num_votes
        if self.settings.logprobs:
            body["logprobs"] = True
        told = shown_json([clip.times for clip in shown], [clip.size for clip in shown])
        return json.dumps(body).encode(), told

    def _show(self, reader: ClipReader, num: int) -> ShownClip:
        times, images = show(reader, num, self.config.frame_size)
        size = images[0].height, images[0].width
        return ShownClip(times, size, [_data_url(image) for image in images])

    def _replies(self, completion: dict[str, Any], asks: Sequence[Ask], shown: str) -> list[Vote]:
        """The votes of one response. Raises ValueError for another model's, or for too few or too many."""
        served = completion.get("model")
        if isinstance(served, str) and served and not same_model(self.model, served):
            raise ValueError(
                f"the server at {self.server.url} answered with model {self.server.quote(served)!r} in place "
                f"of judge.model {self.model!r}; correct judge.model, or serve that model"
            )
        choices = sorted(completion["choices"], key=lambda choice: choice.get("index") or 0)
        if len(choices) != len(asks):
            raise ValueError(
                f"the server at {self.server.url} returned {len(choices)} replies where {len(asks)} were "
                "asked for; set judge.server.requests to one_vote"
            )
        return [
            vote_of(ask, read_choice(choice, ask, self.format), log_probability_of(choice), shown)
            for ask, choice in zip(asks, choices, strict=True)
        ]


def request_seed(ask: Ask) -> int:
    """The ask's seed in the 31 bits that every server takes."""
    return ask.seed % 2**31


def read_choice(choice: dict[str, Any], ask: Ask, form: ReplyFormat) -> Reply:
    """What one of a response's choices says; only a reply that ended by itself is held to its form."""
    message = choice.get("message") or {}
    text, refusal = message.get("content"), message.get("refusal")
    text = text if isinstance(text, str) else ""
    if choice.get("finish_reason") == "length":
        return Reply(None, text, "truncated")
    if choice.get("finish_reason") == "content_filter" or refusal:
        return Reply(None, text or str(refusal or ""), "withheld")
    return form.parse(text, ask.question.dimensions)


def log_probability_of(choice: dict[str, Any]) -> float | None:
    """The sum over the reply's tokens in nats, or None where the server gives none."""
    tokens = (choice.get("logprobs") or {}).get("content")
    if not tokens:
        return None
    total = sum(float(token["logprob"]) for token in tokens)
    return total if math.isfinite(total) else None


def _part(block: dict[str, Any], urls: Any) -> dict[str, Any]:
    """A block of build_message in OpenAI's form; images take the next of `urls`."""
    if block["type"] != "image":
        return block
    return {"type": "image_url", "image_url": {"url": next(urls)}}


def _data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=1)  # lossless at every level; the higher ones take long
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
