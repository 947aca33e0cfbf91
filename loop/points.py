"""The numbers of a run as points for trackers, read from its directory as they appear there.

Everything comes from files that the stages write anyway, so no stage knows of trackers, and a tracker that
was away, or is new, gets what it has missed.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop.curves import read_metrics
from loop.stages import plan
from loop.store import MANIFEST, Store

TRAINING = ("train_judge", "update")  # the stages that write log.jsonl
AXES = {  # first part of a name → its axis
    **{stage: f"{stage}/step" for stage in TRAINING},
    **dict.fromkeys(("evaluate", "gate", "judge_gate", "seconds"), "round"),
}
_COUNTED = ("step", "split", "phase")  # of a row of log.jsonl: where it belongs, not what was measured


@dataclass(frozen=True)
class Point:
    """Finite numbers by name at one place of an axis: "round", or a stage's steps over all rounds."""

    axis: str
    step: int
    values: dict[str, float]


class Feed:
    """All points of a run, each once: a source is a list that only grows, and `sent` counts what is known."""

    def __init__(self, root: Path, rounds: int):
        self._store, self._rounds = Store(root), rounds
        self._lengths: dict[tuple[str, int], int] = {}

    def new(self, sent: Mapping[str, int]) -> Iterator[tuple[str, Point | None]]:
        """(source, its next point) of everything beyond `sent`; None where the next one holds no number."""
        for round, stage in plan(self._rounds):
            source = f"{round:03d}-{stage}"
            if source in sent:
                continue
            folder = self._store.artefact(round, stage)
            committed = (folder / MANIFEST).is_file()
            if stage in TRAINING:
                steps = f"{source}/steps"
                rows = self._rows(round, stage, committed, sent.get(steps, 0))
                yield from ((steps, point) for point in rows)
            if not committed:
                break
            yield source, _result(round, stage, folder)
        yield from (("seconds", point) for point in self._seconds()[sent.get("seconds", 0) :])

    def _rows(self, round: int, stage: str, committed: bool, known: int) -> Iterator[Point | None]:
        folder = self._store.artefact(round, stage)
        lines = _lines((folder if committed else folder.with_name(f".work-{stage}")) / "log.jsonl")
        if len(lines) > known:
            before = sum(self._length(stage, earlier) for earlier in range(1, round))
            for line in lines[known:]:
                row = json.loads(line)
                kind = row.get("split") or row.get("phase")
                name = f"{stage}/{kind}" if kind else stage
                values = {key: value for key, value in row.items() if key not in _COUNTED}
                yield _point(f"{stage}/step", before + row["step"], name, values)

    def _length(self, stage: str, round: int) -> int:
        """Steps of a committed training."""
        if (stage, round) not in self._lengths:
            lines = _lines(self._store.artefact(round, stage) / "log.jsonl")
            self._lengths[stage, round] = max((json.loads(line)["step"] + 1 for line in lines), default=0)
        return self._lengths[stage, round]

    def _seconds(self) -> list[Point | None]:
        """Of the first commit of each stage, in the order of their ends."""
        first: dict[tuple[int, str], float] = {}
        for event in self._store.events():
            if event["event"] == "stage_committed":
                first.setdefault((event["round"], event["stage"]), event["seconds"])
        return [_point("round", round, "seconds", {stage: s}) for (round, stage), s in first.items()]


def _lines(path: Path) -> list[str]:
    """Whole lines: the last one may be in the making. None where the file moves just now: it comes again."""
    try:
        return path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    except FileNotFoundError:
        return []


def _result(round: int, stage: str, folder: Path) -> Point | None:
    read = _RESULTS.get(stage)
    return _point("round", round, stage, read(folder)) if read else None


def _metrics(evaluate: Path) -> dict[str, Any]:
    """Over all prompts, with both ends of the interval; a metric's second judge is named."""
    found: dict[str, Any] = {}
    for row in read_metrics(evaluate):
        if row["category"] == "":
            name = row["metric"] if row["metric"] not in found else f"{row['metric']}/by_{row['judge']}"
            found |= {name: row["value"], f"{name}/low": row["low"], f"{name}/high": row["high"]}
    return found


def _decision(gate: Path) -> dict[str, Any]:
    file = gate / "gate.json"
    decided = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {key: float(value) if isinstance(value, bool) else value for key, value in decided.items()}


_RESULTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "evaluate": _metrics,
    "gate": _decision,
    "judge_gate": _decision,
}


def _point(axis: str, step: int, name: str, values: Mapping[str, Any]) -> Point | None:
    """What is no finite number is left out: text, and what could not be measured."""
    kept = {
        f"{name}/{key}": float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
    return Point(axis, step, kept) if kept else None
