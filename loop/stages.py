"""The stages of a round as one table: what runs, from which artefacts, under which sections of the config."""

import hashlib
import importlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from loop.config import CampaignConfig
from loop.progress import Progress


@dataclass(frozen=True)
class StageContext:
    """All that a stage function gets.

    inputs: committed artefact directories by name; an optional input that does not exist yet is absent.
    out: the work directory. It may hold what a killed attempt at exactly this work left, so finished shards
        can be kept; every file must appear whole (write to `scratch`, then os.replace).
    seed: of this campaign, round and stage; below 2^31, so every library takes it.
    stage: its name in STAGES, by which loop/held_out.py knows the parts that it may read; without one it is
        the train part.
    log_file: where `log` is written, if it is a file; other processes of the stage write theirs beside it.
    """

    config: CampaignConfig
    round: int
    inputs: Mapping[str, Path]
    out: Path
    seed: int
    progress: Progress
    log: logging.Logger
    stage: str = ""
    log_file: Path | None = None

    @property
    def scratch(self) -> Path:
        """A folder inside `out` for checkpoints and partial files; it is removed before the commit."""
        folder = self.out / "_scratch"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@dataclass(frozen=True)
class Stage:
    """`config` names the sections or keys that change the result; `inputs` ending in "?" may be absent.

    distributed: several processes may run it together (loop/distributed.py).
    """

    function: str | Callable[[StageContext], None]  # "package.module:function", imported when the stage runs
    inputs: tuple[str, ...]
    config: tuple[str, ...]
    distributed: bool = False

    def resolve(self) -> Callable[[StageContext], None]:
        if callable(self.function):
            return self.function
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(module), name)

    def check_inputs(self, given: Mapping[str, Path]) -> None:
        known = {name.removesuffix("?") for name in self.inputs}
        required = {name for name in self.inputs if not name.endswith("?")}
        assert required <= set(given) <= known, f"inputs {sorted(given)} do not match {self.inputs}"


# fmt: off
STAGES: dict[str, Stage] = {
    "prepare": Stage("loop.steps.prepare:run",
        inputs=(),
        config=("seed", "data", "generator")),
    "train_judge": Stage("loop.steps.train_judge:run",
        inputs=("prepare", "judge_parent?", "label?", "sample?"),
        config=("judge", "known_answers", "train_judge", "certainty")),
    "judge_gate": Stage("loop.steps.judge_gate:run",
        inputs=("prepare", "train_judge", "judge_parent?", "earlier?"),
        config=("judge", "known_answers", "judge_gate", "certainty", "label", "alarms")),
    "sample": Stage("loop.steps.sample:run",
        inputs=("prepare", "generator?"),
        config=("generator", "sample")),
    "label": Stage("loop.steps.label:run",
        inputs=("prepare", "sample", "judge_gate", "judge?"),
        config=("judge", "label", "pair.real_wins")),
    "pair": Stage("loop.steps.pair:run",
        inputs=("prepare", "sample", "label"),
        config=("pair", "certainty")),
    "update": Stage("loop.steps.update:run",
        inputs=("prepare", "sample", "pair", "generator?", "earlier_gate?"),
        config=("generator", "update"), distributed=True),
    "evaluate": Stage("loop.steps.evaluate:run",
        inputs=("prepare", "generator?", "judge?", "previous?", "base?", "sample?", "pair?"),
        config=("generator", "sample", "judge", "held_out_judge", "known_answers", "evaluate")),
    "gate": Stage("loop.steps.gate:run",
        inputs=("prepare", "update", "generator?",
                "earlier?", "judge?", "judge_gate?", "pair?", "earlier_pair?"),
        config=("generator", "sample", "judge", "held_out_judge", "gate", "alarms")),
}
# fmt: on

FIRST_ROUND = ("prepare", "evaluate")
EVERY_ROUND = ("train_judge", "judge_gate", "sample", "label", "pair", "update", "evaluate", "gate")


def plan(rounds: int) -> list[tuple[int, str]]:
    """(round, stage) of a whole campaign, in the order in which they run."""
    first = [(0, stage) for stage in FIRST_ROUND]
    return first + [(number, stage) for number in range(1, rounds + 1) for stage in EVERY_ROUND]


def derive_seed(*parts: int | str) -> int:
    """A stable seed below 2^31 from names and numbers, e.g. (campaign seed, round, stage)."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") % 2**31
