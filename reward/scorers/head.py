"""reward_head.json: what a linear reward head reads and gives; and how its outputs make our dimensions.

Torch-free. The weights lie beside it in reward_head.safetensors (reward/scorers/linear.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from reward.config import JudgeConfig, ScorerConfig
from reward.scorers.checklist import read_checklist

HEAD_FILE = "reward_head.json"
WEIGHTS_FILE = "reward_head.safetensors"

INSTRUCTIONS = """\
These are the frames, in order, of a video that was made for this prompt: {prompt}
Rate how well the video shows what the prompt says, whether its motion is smooth, possible and as much as \
the prompt asks for, and whether every frame is sharp, clean and stable."""


class HeadFile(BaseModel):
    """The json beside a head's weights. One entry an output in `outputs`, `tokens`, `mean` and `std`.

    `tokens` are special tokens in `instructions` whose hidden states are read, none = the last token's for
    all outputs. `mean` and `std` normalise what is reported. `frames`: as single images, or as one video of
    which the model merges neighbouring frames. `positions`: the model's own (for the Qwen-VL line time,
    height and width), or one sequential number for text and patches alike. `fps`: frames shown a second; none
    = as many as judge.num_frames allows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["retake-reward-head"] = "retake-reward-head"
    version: Literal[1] = 1
    outputs: tuple[str, ...] = Field(min_length=1)
    tokens: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    instructions: str = INSTRUCTIONS
    frames: Literal["images", "video"] = "images"
    positions: Literal["model", "sequential"] = "model"
    fps: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> HeadFile:
        num = len(self.outputs)
        if len(set(self.outputs)) != num:
            raise ValueError("outputs: name each once")
        for name in ("tokens", "mean", "std"):
            if len(getattr(self, name)) not in (0, num):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {num} outputs")
        if not all(value > 0 for value in self.std):
            raise ValueError("std must be above 0")
        for text in ("{prompt}", *self.tokens):
            if self.instructions.count(text) != 1:
                raise ValueError(f"instructions must hold {text} once")
        return self


def read_head(file: Path) -> HeadFile:
    """Raises ValueError naming the file and the key for what is not a head."""
    try:
        return HeadFile.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ValueError(
            f"{file}: {key or 'reward head'}: {first['msg'].removeprefix('Value error, ')}"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot read it as JSON ({error}); save the reward head again") from None


def write_head(head: HeadFile, file: Path) -> None:
    file.write_text(json.dumps(head.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n", "utf-8")


def with_instructions(head: HeadFile, instructions: str | None) -> HeadFile:
    """The head under other words, if any. Raises ValueError for words without the head's reward tokens."""
    if instructions is None:
        return head
    missing = [token for token in head.tokens if instructions.count(token) != 1]
    if missing:
        raise ValueError(
            f"judge.scorer.instructions must hold {missing[0]} once: the head reads its hidden state"
        )
    return head.model_copy(update={"instructions": instructions})


def find_head(config: JudgeConfig) -> tuple[HeadFile, Path | None]:
    """The head of judge.model and its weights' file; a new head without weights where that is asked for.

    Raises ValueError for a model without head, and for VideoReward as it is published.
    """
    file = _file(config, HEAD_FILE)
    if file is not None:
        weights = _file(config, WEIGHTS_FILE)
        if weights is None:
            raise ValueError(f"judge.model {config.model!r} has {HEAD_FILE}, but no {WEIGHTS_FILE}; add it")
        return read_head(file), weights
    if _file(config, "model_config.json") is not None:
        raise ValueError(
            f"judge.model {config.model!r} is VideoReward as it is published; convert it once, with "
            "python -m reward.scorers.videoreward (docs/scorers.md), and give the converted folder"
        )
    if not config.scoring.new_head:
        raise ValueError(
            f"judge.model {config.model!r} has no {HEAD_FILE}: give a scorer's folder, or, for a model that "
            "train_judge is to make one of, set judge.scorer.new_head to true"
        )
    return HeadFile(outputs=config.dimensions), None


def _file(config: JudgeConfig, name: str) -> Path | None:
    """A file of judge.model, be it a folder or a hub id; None where it has none of that name."""
    assert config.model is not None, "JudgeConfig requires a model for type scorer"
    folder = Path(config.model).expanduser()
    if folder.is_dir() or config.model.startswith((".", "/", "~")):
        return folder / name if (folder / name).is_file() else None
    from transformers.utils import cached_file

    found = cached_file(config.model, name, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


@dataclass(frozen=True)
class Mix:
    """How O raw outputs make D dimensions; all arrays are float64.

    A dimension's score is Σ w·(raw − mean)/std, as reward models publish it. What votes is its difference in
    logits: times the mean std of its outputs, weighted by |w|. For a single output that is the difference of
    raw outputs, for which Bradley-Terry was fitted; for sums it is ours. κ of a dimension is the |w|-weighted
    mean of its outputs'.
    """

    dimensions: tuple[str, ...]
    weights_DO: np.ndarray
    mean_O: np.ndarray
    std_O: np.ndarray

    @property
    def shares_DO(self) -> np.ndarray:
        absolute = np.abs(self.weights_DO)
        return absolute / absolute.sum(axis=1, keepdims=True)

    @property
    def logits_DO(self) -> np.ndarray:
        """Raw outputs to logits: `logits_DO @ (raw_first − raw_second)` is Δ of Bradley-Terry."""
        return (self.shares_DO @ self.std_O)[:, None] * self.weights_DO / self.std_O

    def scores(self, raw_O: np.ndarray) -> np.ndarray:
        """[D], normalised, as they are reported."""
        return self.weights_DO @ ((raw_O - self.mean_O) / self.std_O)


def make_mix(
    dimensions: Sequence[str],
    outputs: Sequence[str],
    config: ScorerConfig,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> Mix:
    """The mix that `judge.scorer.outputs` names. Raises ValueError for a dimension or output not there."""
    rows = [_weights(dimension, outputs, config) for dimension in dimensions]
    return Mix(
        tuple(dimensions),
        np.array(rows, dtype=np.float64),
        np.array(mean or [0.0] * len(outputs)),
        np.array(std or [1.0] * len(outputs)),
    )


def _weights(dimension: str, outputs: Sequence[str], config: ScorerConfig) -> list[float]:
    listed = ", ".join(outputs)
    if dimension in config.outputs:
        given = config.outputs[dimension]
        unknown = [name for name in given if name not in outputs]
        if unknown:
            raise ValueError(
                f"judge.scorer.outputs.{dimension}: the head has no output {unknown[0]!r}; it has {listed}"
            )
        return [given.get(name, 0.0) for name in outputs]
    if dimension in outputs:
        return [float(name == dimension) for name in outputs]
    if dimension == "overall":
        return [1.0] * len(outputs)
    raise ValueError(
        f"judge.dimensions has {dimension}, but the head gives {listed}: say in judge.scorer.outputs."
        f"{dimension} which outputs it is made of, or remove it from judge.dimensions"
    )


def check_scorer(config: JudgeConfig) -> None:
    """Raise ValueError for a judge of type scorer that could not score. Reads no weights and asks no hub."""
    if config.scoring.head == "checklist":
        make_mix(config.dimensions, read_checklist(config).outputs, config.scoring)
    elif config.model is not None and Path(config.model).expanduser().is_dir():
        head, _ = find_head(config)
        make_mix(
            config.dimensions, with_instructions(head, config.scoring.instructions).outputs, config.scoring
        )
