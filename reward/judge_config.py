"""Settings of the judge: which one answers, what it is shown, how it is asked. Imports no torch."""

from __future__ import annotations

import difflib
import math
from typing import Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from reward.replies import FORMATS
from reward.section import Section
from reward.server_config import ServerConfig
from reward.vllm_config import VllmConfig

DIMENSIONS = ("text_alignment", "motion", "visual_quality", "overall")


class ScorerConfig(Section):
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


class JudgeConfig(Section):
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
        """Without our own form of reply and a vllm section that is not there: neither changes a vote, so
        neither must change a stage's fingerprint."""
        kept: dict[str, Any] = write(self)
        if self.reply == "retake":
            kept.pop("reply", None)
        if self.vllm is None:
            kept.pop("vllm", None)
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
