"""Settings of the judge: how it asks, how it votes, how it learns. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from reward.vllm_config import VllmConfig

DIMENSIONS = ("text_alignment", "motion", "visual_quality", "overall")

CORRUPTIONS = (
    "wrong_caption",
    "freeze",
    "stutter",
    "jitter",
    "shuffle",
    "reverse",
    "vanish",
    "blur",
    "noise",
    "flicker",
    "fade",
    "recolour",
    "splice",
)

INSTRUCTIONS = """\
Two videos, first and second, were made for the same prompt. Each is given as frames in order.
Say what each video shows and what is wrong with it, then compare them in every dimension:
text_alignment (does it show what the prompt says), motion (is it smooth, possible, and is there as much \
of it as the prompt asks for), visual_quality (is every frame sharp, clean and stable) and overall.
Answer first, second or tie. Be conservative: where you see no clear difference, answer tie.
Reply in exactly this form and write nothing else:
<reasoning>your reasoning</reasoning><answer>{dimensions}</answer>"""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_SET_BY_RETAKE = frozenset(
    ("model", "messages", "temperature", "top_p", "max_tokens", "seed", "n", "logprobs", "stream")
)


class ServerConfig(_Section):
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


class JudgeConfig(_Section):
    """Which judge answers, and what it is shown."""

    model_config = ConfigDict(hide_input_in_errors=True)  # pydantic asks the outermost section

    type: str = Field(
        "transformers",
        description="transformers, openai, vllm, python, human, or an entry point of the group retake.judges",
    )
    model: str | None = Field(
        None,
        description="a transformers folder, a hub id, or embedded:NAME; for openai the server's name of it",
    )
    server: ServerConfig | None = Field(
        None, description="for types openai and vllm: where the server is, how it is asked"
    )
    vllm: VllmConfig | None = Field(None, description="for type vllm: the server that retake starts")
    target: str | None = Field(
        None, description="for type python: pkg.module:Class, called with this section"
    )
    answers: str | None = Field(
        None, description="for type human: a .csv or .parquet with what people answered (docs/judges.md)"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto = float32 on a CPU, bfloat16 on an accelerator"
    )
    num_frames: int = Field(
        8, ge=1, description="frames shown of a whole clip, evenly spaced, first and last included"
    )
    num_segment_frames: int = Field(8, ge=1, description="frames shown of a segment, at most")
    frame_size: int | None = Field(
        None, ge=8, description="pixels, height and width; null = left to the processor"
    )
    dimensions: tuple[str, ...] = DIMENSIONS
    instructions: str = Field(
        INSTRUCTIONS, description="opens the message; {dimensions} becomes the answer's form"
    )
    time_stamps: bool = Field(True, description="put the time of every frame, in seconds, in front of it")
    max_new_tokens: int = Field(512, ge=1)
    temperature: float = Field(
        1.0, ge=0, description="0 = greedy, all ballots of an order are then the same vote"
    )
    batch_size: int = Field(
        16, ge=1, description="replies written at once; changes no vote beyond float rounding"
    )
    trust_remote_code: bool = False

    @field_validator("dimensions")
    @classmethod
    def _dimensions(cls, dimensions: tuple[str, ...]) -> tuple[str, ...]:
        if not dimensions or len(set(dimensions)) != len(dimensions):
            raise ValueError("name each dimension once, and at least one")
        for name in dimensions:
            if not name.isidentifier():
                raise ValueError(
                    f"{name!r} is not a name of letters, digits and underscores; rename the dimension"
                )
        return dimensions

    @model_validator(mode="before")
    @classmethod
    def _sections_of_vllm(cls, data: Any) -> Any:
        """A vllm judge has both sections, so that those left out and those given empty are one config."""
        if isinstance(data, dict) and data.get("type") == "vllm":
            return {**data, "server": data.get("server") or {}, "vllm": data.get("vllm") or {}}
        return data

    @model_serializer(mode="wrap")
    def _without_idle_section(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a vllm section there is no such key, as in runs that are older than it."""
        kept = write(self)
        if self.vllm is None:
            kept.pop("vllm", None)
        return kept

    @model_validator(mode="after")
    def _needs(self) -> JudgeConfig:
        if self.type == "python" and self.target is None:
            raise ValueError("judge.type is python: set judge.target to pkg.module:Class")
        if self.type == "human" and self.answers is None:
            raise ValueError("judge.type is human: set judge.answers to a .csv or .parquet of their answers")
        if self.type == "transformers" and self.model is None:
            raise ValueError(
                "judge.type is transformers: set judge.model to a folder, a hub id or embedded:NAME"
            )
        if self.type == "openai":
            self._needs_of_openai()
        if self.type == "vllm":
            self._needs_of_vllm()
        if self.type in ("openai", "vllm"):
            self._needs_of_a_server()
        return self

    def _needs_of_openai(self) -> None:
        if self.model is None:
            raise ValueError(
                "judge.type is openai: set judge.model to the name that the server lists at /models"
            )
        if self.server is None or self.server.base_url is None:
            raise ValueError(
                "judge.type is openai: set judge.server.base_url, such as http://localhost:8000/v1"
            )

    def _needs_of_vllm(self) -> None:
        assert self.server is not None  # _sections_of_vllm sees to it
        if self.model is None:
            raise ValueError("judge.type is vllm: set judge.model to a folder, a hub id or embedded:NAME")
        if self.server.base_url is not None or self.server.api_key_env is not None:
            raise ValueError(
                "judge.type is vllm: retake starts the server itself; remove judge.server.base_url and "
                "api_key_env, or set judge.type to openai for a server that runs already"
            )

    def _needs_of_a_server(self) -> None:
        assert self.server is not None
        if self.server.requests == "one_order" and self.temperature == 0:
            raise ValueError(
                "judge.server.requests is one_order, but judge.temperature 0 leaves nothing to draw several "
                "votes from; set requests to one_vote"
            )


class KnownAnswersConfig(_Section):
    """Questions whose answer is known because the flaw was put in."""

    num_train: int = Field(512, ge=0, description="questions of the train part, drawn afresh every round")
    num_calibrate: int = Field(128, ge=0)
    num_gate: int = Field(128, ge=0)
    num_report: int = Field(128, ge=0)
    corruptions: tuple[str, ...] = CORRUPTIONS
    segments: int = Field(0, ge=0, description="equal segments that a clip is cut into; 0 = whole clips only")
    segment_share: float = Field(0.25, ge=0, le=1, description="share of the questions that show one segment")
    tie_share: float = Field(0.2, ge=0, le=1, description="share of the questions that are known ties")
    wrong_caption_share: float = Field(
        0.25, ge=0, le=1, description="share of the other questions in which one clip shows another caption"
    )
    both_share: float = Field(
        0.3, ge=0, le=1, description="share of the others in which both clips are flawed"
    )

    @field_validator("corruptions")
    @classmethod
    def _known(cls, corruptions: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in corruptions if name not in CORRUPTIONS]
        if unknown or not corruptions:
            raise ValueError(f"unknown corruptions {unknown}; choose from {', '.join(CORRUPTIONS)}")
        return corruptions


class VotingConfig(_Section):
    """How often a question is asked. A ballot is one vote in each order.

    With `min_ballots` below `num_ballots` a question stops once its votes are clear (reward/stopping.py).
    """

    num_ballots: int = Field(4, ge=1, description="ballots of a question, at most")
    min_ballots: int | None = Field(
        None, ge=1, description="ballots before a question may stop; null = num_ballots: none stops early"
    )
    stop_error: float = Field(
        0.05, gt=0, lt=0.5, description="δ: stop where the other side is better with at most this probability"
    )
    vote_correlation: float = Field(
        0.0, ge=0, le=1, description="ρ: n votes of a question count as n / (1 + (n−1)·ρ) independent ones"
    )

    @property
    def least_ballots(self) -> int:
        """Ballots that every question gets."""
        return self.num_ballots if self.min_ballots is None else self.min_ballots

    @property
    def stops_early(self) -> bool:
        return self.least_ballots < self.num_ballots

    @model_validator(mode="after")
    def _min_within_num(self) -> VotingConfig:
        if self.least_ballots > self.num_ballots:
            raise ValueError(
                f"min_ballots is {self.min_ballots}, but num_ballots only {self.num_ballots}: "
                "lower min_ballots, or raise num_ballots"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_idle_keys(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Where no question stops early, the keys that decide when are left out: they change no vote, so
        they must change no stage's fingerprint either."""
        kept = write(self)
        return kept if self.stops_early else {"num_ballots": kept["num_ballots"]}


class CertaintyConfig(_Section):
    """Which verdicts are certain enough to train on."""

    min_probability: float = Field(
        0.7,
        ge=0.5,
        le=1,
        description="of the preferred clip being better, for kinds of question with a calibrator",
    )
    min_margin: float = Field(
        0.5, ge=0, le=1, description="|2·score−1|·(1−flip rate), for kinds that nothing calibrates"
    )
    min_votes: int = Field(2, ge=1, description="votes that are not abstentions")
    min_labels: int = Field(
        50, ge=1, description="labels that a dimension needs for a slope of its own, else pooled"
    )


class LoraConfig(_Section):
    """A PEFT adapter on the language model; it is merged before the judge is saved."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


class TrainJudgeConfig(_Section):
    """One round of the judge: supervised on known answers, then SRPO on its own confident votes."""

    lora: LoraConfig | None = Field(None, description="null = full weights")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the training forward")
    num_steps: int = Field(100, ge=0, description="supervised steps a round")
    batch_size: int = Field(16, ge=1, description="questions a supervised step")
    learning_rate: float = Field(1e-4, gt=0)
    warmup_steps: int = Field(10, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    micro_batch_size: int | None = Field(
        None, ge=1, description="rows a forward; null = a whole step's. Both kinds of step"
    )
    gradient_checkpointing: bool = False
    preference_steps: int = Field(0, ge=0, description="SRPO steps a round, from the second round on")
    preference_batch_size: int = Field(8, ge=1, description="pairs of reasoning paths a SRPO step")
    preference_learning_rate: float = Field(1e-5, gt=0)
    beta: float = Field(0.1, gt=0, description="β of the DPO loss in SRPO")
    pairs_per_question: int = Field(
        2, ge=1, description="right-against-wrong pairs taken from one question, at most"
    )
    tau: float | None = Field(
        None, gt=0, description="of PCE = σ((R−Q)/τ), nats a token; null = the standard deviation of R (ours)"
    )
    min_pce: float = Field(
        0.5, ge=0, le=1, description="pairs at or below are dropped (Dual-IPO keeps PCE > 0.5)"
    )
    log_every: int = Field(10, ge=1)

    @model_validator(mode="after")
    def _micro_batches(self) -> TrainJudgeConfig:
        if self.micro_batch_size is not None:
            for name in ("batch_size", "preference_batch_size"):
                if getattr(self, name) % self.micro_batch_size:
                    raise ValueError(
                        f"{name} must be a multiple of micro_batch_size ({self.micro_batch_size})"
                    )
        return self
