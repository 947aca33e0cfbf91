"""Settings of the judge: how it asks, how it votes, how it learns. Imports no torch."""

from __future__ import annotations

import difflib
import math
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

from reward.replies import FORMATS
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
    "drop",
    "drift",
)


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


class ScorerConfig(_Section):
    """A judge that scores every clip alone: two scores make votes (docs/scorers.md)."""

    head: Literal["linear", "checklist"] = Field(
        "linear",
        description="linear: a trained head on hidden states (reward_head.json); checklist: yes/no questions",
    )
    outputs: dict[str, dict[str, float]] = Field(
        {},
        description="of a dimension: the head's outputs and their weights; left out = the output of the same "
        "name, and for overall, where there is none, the sum of all",
    )
    tie_threshold: float | None = Field(
        None,
        ge=0,
        description="κ in nats: equal clips tie with probability (e^κ − 1) / (e^κ + 1); null = the head's "
        "own, 0 for a checklist",
    )
    instructions: str | None = Field(
        None,
        description="what a linear head is told after the frames, {prompt} is the clip's prompt; null = what "
        "the head was trained with, else retake's words",
    )
    new_head: bool = Field(
        False,
        description="start with a head of zeros where judge.model has none, to be trained by train_judge",
    )
    head_learning_rate: float = Field(
        1e-3,
        gt=0,
        description="of a linear head in train_judge, which begins at zero; the model learns slower",
    )
    checklist: str | None = Field(
        None, description="for head checklist: a YAML file of questions, or example for the one of retake"
    )
    hard_answers: bool = Field(
        False, description="count an answer as yes = 1 or no = −1, not as 2·P(yes) − 1"
    )

    @field_validator("instructions")
    @classmethod
    def _name_the_prompt(cls, instructions: str | None) -> str | None:
        if instructions is not None and "{prompt}" not in instructions:
            raise ValueError("lacks {prompt}, in whose place every clip's prompt is put; add it")
        return instructions

    @field_validator("outputs")
    @classmethod
    def _weigh_something(cls, outputs: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        for dimension, weights in outputs.items():
            if not any(weights.values()) or not all(math.isfinite(w) for w in weights.values()):
                raise ValueError(f"{dimension} needs an output with a finite weight other than 0")
        return outputs

    @model_validator(mode="after")
    def _needs(self) -> ScorerConfig:
        if (self.head == "checklist") != (self.checklist is not None):
            raise ValueError("head checklist and the key checklist (a file, or example) belong together")
        if self.head == "checklist" and (self.new_head or self.instructions is not None):
            raise ValueError("a checklist has its own questions; remove new_head and instructions")
        return self


class JudgeConfig(_Section):
    """Which judge answers, and what it is shown."""

    model_config = ConfigDict(hide_input_in_errors=True)  # pydantic asks the outermost section

    type: str = Field(
        "transformers",
        description="transformers, scorer, openai, vllm, python, human, or an entry point of the group "
        "retake.judges",
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
    scorer: ScorerConfig | None = Field(None, description="for type scorer; null = its defaults")
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
    reply: str = Field(
        "retake", description="the form of the replies (reward/replies.py): retake, our own; unified_reward"
    )
    instructions: str = Field(
        FORMATS["retake"].instructions,
        description="what the model is told; {dimensions} becomes the answer's form, and {prompt} the "
        "caption, which else follows them. Left out: those of the reply's form",
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

    @model_validator(mode="before")
    @classmethod
    def _instructions_of_the_reply(cls, data: Any) -> Any:
        """Instructions that nobody wrote are those of the reply's form, also where --set changed the form."""
        if not isinstance(data, dict) or not isinstance(data.get("reply"), str):
            return data
        ours = {form.instructions for form in FORMATS.values()}
        form = FORMATS.get(data["reply"])
        if form is None or data.get("instructions", form.instructions) not in ours:
            return data
        return {**data, "instructions": form.instructions}

    @field_validator("reply")
    @classmethod
    def _known_reply(cls, name: str) -> str:
        if name not in FORMATS:
            close = difflib.get_close_matches(name, FORMATS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"unknown form of reply {name!r}{hint}; valid: {', '.join(FORMATS)}")
        return name

    @model_serializer(mode="wrap")
    def _without_idle_keys(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Our own form of reply is left out, so that it changes no stage's fingerprint."""
        kept: dict[str, Any] = write(self)
        if self.reply == "retake":
            kept.pop("reply", None)
        return kept

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
        answered = FORMATS[self.reply].dimensions
        beyond = [name for name in self.dimensions if answered is not None and name not in answered]
        if answered is not None and beyond:
            raise ValueError(
                f"judge.reply {self.reply} says nothing of {beyond[0]!r}; choose judge.dimensions from "
                f"{', '.join(answered)}"
            )
        if self.type == "python" and self.target is None:
            raise ValueError("judge.type is python: set judge.target to pkg.module:Class")
        if self.type == "human" and self.answers is None:
            raise ValueError("judge.type is human: set judge.answers to a .csv or .parquet of their answers")
        if self.type in ("transformers", "scorer") and self.model is None:
            raise ValueError(
                f"judge.type is {self.type}: set judge.model to a folder, a hub id or embedded:NAME"
            )
        if self.type != "scorer" and self.scorer is not None:
            raise ValueError(
                f"judge.scorer is for type scorer, but judge.type is {self.type}: change one of them"
            )
        unasked = sorted(set(self.scoring.outputs) - set(self.dimensions))
        if unasked:
            raise ValueError(
                f"judge.scorer.outputs has {unasked[0]}, which is not in judge.dimensions; add or remove it"
            )
        if self.type == "openai":
            self._needs_of_openai()
        if self.type == "vllm":
            self._needs_of_vllm()
        if self.type in ("openai", "vllm"):
            self._needs_of_a_server()
        return self

    @property
    def scoring(self) -> ScorerConfig:
        """How a judge of type scorer scores."""
        return self.scorer or ScorerConfig()

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
        50,
        ge=1,
        description="labels that a dimension needs for a slope of its own, else pooled; likewise answered "
        "questions of known segments and of human pairs for a calibrator of their own",
    )
    target_precision: float | None = Field(
        None,
        ge=0.5,
        lt=1,
        description="for kinds with a calibrator, in place of min_probability: the most certain verdicts of "
        "a round are kept, as many as have this mean certainty",
    )
    max_flip_rate: float = Field(
        1.0, ge=0, le=1, description="share of ballots that may flip, for kinds that nothing calibrates"
    )
    isotonic_labels: int | None = Field(
        1000, ge=1, description="labels from which on a curve takes the place of a slope; null = never"
    )
    human_share: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="share of the prompts of data.human_pairs whose pairs calibrate take_take and train "
        "nothing, with those of the calibrate part's prompts; 0 = none",
    )

    @model_serializer(mode="wrap")
    def _without_idle_keys(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keys that came later are left out where they do nothing new: they must change no fingerprint."""
        later = ("target_precision", "max_flip_rate", "isotonic_labels", "human_share")
        idle = {name: type(self).model_fields[name].default for name in later}
        return {k: v for k, v in write(self).items() if k not in idle or v != idle[k]}


class LoraConfig(_Section):
    """A PEFT adapter on the language model; it is merged before the judge is saved."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


class TrainJudgeConfig(_Section):
    """One round of the judge: supervised on known answers and seed reasoning, SRPO, then GRPO if wanted."""

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
    checkpoint_every: int | None = Field(
        None,
        ge=1,
        description="steps between checkpoints, from which a killed training goes on; a multiple of "
        "log_every; null = none, it starts again",
    )
    cold_start_steps: int | None = Field(
        None, ge=0, description="supervised steps while no trained judge is in force; null = num_steps"
    )
    seed_every_round: bool = Field(
        False,
        description="data.seed_reasoning is learnt in every round, not in the cold start alone",
    )
    own_questions: int | None = Field(
        None,
        ge=1,
        description="for SRPO the judge answers this many questions of the round before again; null = the "
        "votes of label serve, of which two an order are needed",
    )
    own_ballots: int = Field(4, ge=2, description="ballots of each of them")
    own_min_margin: float = Field(
        0.25, ge=0, le=1, description="vote margin of those of them that tell right paths from wrong ones"
    )
    known_share: float = Field(
        0.0, ge=0, lt=1, description="of SRPO's rows, from fresh known answers: right by truth, not by vote"
    )
    known_ballots: int = Field(
        4, ge=1, description="ballots in which the judge answers a known question, for known_share"
    )
    real_share: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="of SRPO's rows, at most, from a real clip against a take, with the real one as the "
        "right answer; null = such verdicts are pseudo-labels like any other",
    )
    grpo_steps: int = Field(0, ge=0, description="GRPO steps a round, on known answers")
    grpo_batch_size: int = Field(32, ge=2, description="replies a GRPO step")
    grpo_replies: int = Field(8, ge=2, description="replies to one question, the group of GRPO")
    grpo_learning_rate: float = Field(1e-5, gt=0)
    grpo_reward: Literal["overall", "mean"] = Field(
        "overall", description="a right answer is one in `overall`, or the share of dimensions that are right"
    )

    @model_validator(mode="after")
    def _batches(self) -> TrainJudgeConfig:
        batches = ["batch_size", "preference_batch_size", *(["grpo_batch_size"] if self.grpo_steps else [])]
        if self.micro_batch_size is not None:
            for name in batches:
                if getattr(self, name) % self.micro_batch_size:
                    raise ValueError(
                        f"{name} must be a multiple of micro_batch_size ({self.micro_batch_size})"
                    )
        if self.checkpoint_every is not None and self.checkpoint_every % self.log_every:
            # a log row is a mean since the last one, which a checkpoint does not hold
            raise ValueError(f"checkpoint_every must be a multiple of log_every ({self.log_every})")
        if self.grpo_steps and self.grpo_batch_size % self.grpo_replies:
            raise ValueError(f"grpo_batch_size must be a multiple of grpo_replies ({self.grpo_replies})")
        return self

    @model_validator(mode="after")
    def _shares(self) -> TrainJudgeConfig:
        if self.known_share + (self.real_share or 0.0) >= 1:
            raise ValueError(
                f"known_share {self.known_share} and real_share {self.real_share} leave nothing for the "
                "judge's own votes; their sum must be below 1"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_idle_keys(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keys of what is switched off are left out: they change no judge, so they must change no stage's
        fingerprint either."""
        idle = {
            "checkpoint_every": self.checkpoint_every is None,
            "cold_start_steps": self.cold_start_steps is None,
            "seed_every_round": not self.seed_every_round,
            **dict.fromkeys(("own_questions", "own_ballots", "own_min_margin"), self.own_questions is None),
            "known_share": self.known_share == 0,
            "known_ballots": self.known_share == 0,
            "real_share": self.real_share is None,
            **{name: self.grpo_steps == 0 for name in type(self).model_fields if name.startswith("grpo_")},
        }
        return {name: value for name, value in write(self).items() if not idle.get(name, False)}
