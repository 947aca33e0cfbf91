"""Settings of the server behind a judge. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
)

from reward.section import Section

_SET_BY_RETAKE = frozenset(
    ("model", "messages", "temperature", "top_p", "max_tokens", "seed", "n", "logprobs", "stream")
)


class ServerConfig(Section):
    """The server behind a judge of type openai or vllm. It never holds a key, only where one is."""

    model_config = ConfigDict(hide_input_in_errors=True)  # a wrong value may be a key in the wrong place

    base_url: str | None = Field(
        None,
        description="up to and without /chat/completions, such as http://localhost:8000/v1; no user, no "
        "query. Required for type openai, absent for vllm, whose server retake starts",
    )
    api_key_env: str | None = Field(
        None, description="NAME of the environment variable that holds the key; null = a server without keys"
    )
    max_concurrency: int = Field(16, ge=1, description="requests under way at once")
    timeout_seconds: float = Field(300.0, gt=0, description="for one attempt, from first to last byte")
    max_retries: int = Field(8, ge=0, description="attempts after the first, for each request")
    backoff_seconds: float = Field(
        1.0,
        ge=0,
        description="the wait before the k-th retry is drawn from 0 to backoff_seconds · 2^(k−1), and is at "
        "least what the server asks for",
    )
    max_backoff_seconds: float = Field(60.0, ge=0, description="the drawn wait is no longer than this")
    requests: Literal["one_vote", "one_order"] = Field(
        "one_vote",
        description="one_vote: every vote is a request with its own seed; one_order: the votes of a question "
        "in one order are one request with n > 1 and the first one's seed",
    )
    logprobs: bool = Field(False, description="ask for log-probabilities; not every server has them")
    special_tokens: tuple[str, ...] = Field(
        ("[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        description="cut out of captions, beside everything in angle brackets",
    )
    extra_body: dict[str, Any] = Field(
        {}, description="further keys of every request, such as top_k or chat_template_kwargs; no secrets"
    )

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            parts = urlsplit(url)
            parts.port  # noqa: B018 – raises for a port that is none
        except ValueError:
            raise ValueError("is no URL; give one such as http://localhost:8000/v1") from None
        if parts.username is not None or parts.password is not None:
            raise ValueError(
                "holds a user or password; remove it, and name the variable with the key in api_key_env"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("starts with http:// or https:// and a host, such as http://localhost:8000/v1")
        if parts.query or parts.fragment:
            raise ValueError("takes no ? or #; give the part before it")
        if parts.path.endswith("/chat/completions"):
            raise ValueError("ends before /chat/completions, usually in /v1; remove what comes after")
        return url.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _name_of_a_variable(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            raise ValueError(
                "is the NAME of an environment variable in capitals, such as OPENAI_API_KEY, never the key "
                "itself; export the key under such a name"
            )
        return name

    @field_validator("extra_body")
    @classmethod
    def _leaves_ours(cls, extra: dict[str, Any]) -> dict[str, Any]:
        for name in sorted(set(extra) & _SET_BY_RETAKE):
            raise ValueError(f"{name} is set by retake from the other keys of judge; remove it here")
        return extra

    def api_key(self) -> SecretStr | None:
        """The key, or None for a server without. Raises ValueError for a variable without a usable key."""
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ValueError(
                f"judge.server.api_key_env: the environment variable {self.api_key_env} is not set; export "
                "the key under this name, or set api_key_env to null for a server without keys"
            )
        if not (key.isascii() and key.isprintable()):
            raise ValueError(
                f"judge.server.api_key_env: {self.api_key_env} holds characters that no key has; export it "
                "again"
            )
        return SecretStr(key)


_TRANSPORT = (
    "api_key_env",
    "max_concurrency",
    "timeout_seconds",
    "max_retries",
    "backoff_seconds",
    "max_backoff_seconds",
)


def without_transport(server: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a dumped ServerConfig that decide votes: a run may go on with others of the rest."""
    return {name: value for name, value in server.items() if name not in _TRANSPORT}
