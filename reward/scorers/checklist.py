"""A checklist: yes/no questions about one clip with their weights, as a YAML file. Torch-free."""

from __future__ import annotations

import hashlib
import importlib.resources
from pathlib import Path

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from reward.config import JudgeConfig

_SHIPPED = "example"


class ChecklistQuestion(BaseModel):
    """`weight` is added to `output` for a yes, taken away for a no; {prompt} in `question` is the clip's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    output: str
    weight: float = Field(allow_inf_nan=False)
    question: str = Field(min_length=1)


class Checklist(BaseModel):
    """`form`: what the model is asked, with {question} in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    form: str = "{question} Answer yes or no."
    questions: tuple[ChecklistQuestion, ...] = Field(min_length=1)

    @field_validator("form")
    @classmethod
    def _asks(cls, form: str) -> str:
        if "{question}" not in form:
            raise ValueError("lacks {question}, in whose place each question is put")
        return form

    @property
    def outputs(self) -> tuple[str, ...]:
        """In the order of their first questions."""
        return tuple(dict.fromkeys(question.output for question in self.questions))

    @property
    def weights(self) -> np.ndarray:
        """[O, Q]: the outputs are `weights @ answers`, answers from −1, no, to 1, yes."""
        weights_OQ = np.zeros((len(self.outputs), len(self.questions)))
        for place, question in enumerate(self.questions):
            weights_OQ[self.outputs.index(question.output), place] = question.weight
        return weights_OQ


def read_checklist(config: JudgeConfig) -> Checklist:
    """The checklist of `judge.scorer.checklist`. Raises ValueError naming file and key for what is none."""
    name = config.scoring.checklist
    try:
        return Checklist.model_validate(yaml.safe_load(checklist_bytes(config)))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"judge.scorer.checklist: {name}: {key or 'the file'}: {reason}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(
            f"judge.scorer.checklist: cannot read {name} as YAML ({error}); docs/scorers.md has an example"
        ) from None


def checklist_bytes(config: JudgeConfig) -> bytes:
    """The content of the checklist's file, which decides votes. Raises OSError."""
    name = config.scoring.checklist
    assert name is not None, "JudgeConfig requires a checklist for head checklist"
    if name == _SHIPPED:
        return (importlib.resources.files("reward") / "checklists" / f"{_SHIPPED}.yaml").read_bytes()
    return Path(name).expanduser().read_bytes()


def checklist_digest(config: JudgeConfig) -> str:
    return hashlib.sha256(checklist_bytes(config)).hexdigest()
