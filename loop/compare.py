"""Several runs side by side: the curves of each, and how far each is from the first one.

Where two runs filmed the same prompts with the same seeds, the difference of a metric is taken take by take
and its interval is drawn over prompts: what is hard about a prompt is then hard for both and drops out.
Where they did not, the two are drawn apart, and the comparison says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from loop.curves import check_known, evaluated_rounds
from loop.errors import UserError
from loop.measured import Measured
from loop.pairing import Difference, Pairing
from loop.status import find_run

OF_REAL_CLIPS = "real_"  # such a metric says nothing of a run's generator


@dataclass(frozen=True)
class Arm:
    """One column of the comparison: a run, or several runs of the same settings with other seeds."""

    name: str
    runs: tuple[Path, ...]


@dataclass(frozen=True)
class Cell:
    """A metric of an arm in a round. value: the mean over its runs; None if it could not be measured.

    low, high: the 95 % interval of a single run, None for several. lowest, highest: of the runs' values.
    kept: None where not all of the arm's runs agree, or the gate has not decided.
    """

    value: float | None
    low: float | None
    high: float | None
    num_clips: int
    num_runs: int
    lowest: float | None
    highest: float | None
    kept: bool | None
    judge: str
    difference: Difference | None  # None for the first arm


@dataclass(frozen=True)
class Comparison:
    """cells: by (metric, round, name of the arm); a round that an arm lacks has no cell."""

    arms: tuple[Arm, ...]
    metrics: tuple[str, ...]
    rounds: tuple[int, ...]
    cells: dict[tuple[str, int, str], Cell]
    notes: list[str] = field(default_factory=list)


def arms_of(runs: Sequence[str], groups: Sequence[str]) -> list[Arm]:
    """An arm for each run, named as its folder, then one for each "NAME=RUN,RUN".

    Raises UserError for what is no run, and for a run or a name that is given twice.
    """
    folders = [find_run(run) for run in runs]
    names = Counter(folder.resolve().name for folder in folders)
    arms = [
        Arm(str(folder) if names[name] > 1 else name, (folder,))
        for folder, name in ((folder, folder.resolve().name) for folder in folders)
    ]
    for text in groups:
        name, _, members = text.partition("=")
        if not name or not all(members.split(",")):
            raise UserError(f"--group {text}: expected NAME=RUN,RUN, as in --group ours=ours-0,ours-1")
        arms.append(Arm(name, tuple(find_run(run) for run in members.split(","))))
    given = Counter(str(run.resolve()) for arm in arms for run in arm.runs) + Counter(
        arm.name for arm in arms
    )
    twice = [name for name, count in given.items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]} is given twice; every run and every name can stand once")
    return arms


def compare(arms: Sequence[Arm], metrics: Sequence[str] = (), rounds: Sequence[int] = ()) -> Comparison:
    """Compare the arms with the first one.

    metrics, rounds: only these; empty = all, but for metrics of real clips.

    Raises UserError for a metric or a round that one of the runs does not have, and for runs without a
    metric in common.
    """
    if len(arms) < 2:
        raise UserError("a comparison needs two runs or more; name another RUN, or --group NAME=RUN,RUN")
    there = _rounds_of([run for arm in arms for run in arm.runs], rounds)
    chosen = sorted(set(rounds) or {number for numbers in there.values() for number in numbers})
    measured = {
        (run, number): Measured.read(run, number)
        for run, numbers in there.items()
        for number in chosen
        if number in numbers
    }
    notes: dict[str, None] = {}
    names = _common_metrics(measured, metrics, notes)
    cells: dict[tuple[str, int, str], Cell] = {}
    for number in chosen:
        of = [[measured[run, number] for run in arm.runs if (run, number) in measured] for arm in arms]
        for arm, here in zip(arms, of, strict=True):
            pairing = None if arm is arms[0] else Pairing(of[0], here)
            if len(here) < len(arm.runs):
                gone = ", ".join(str(run) for run in arm.runs if (run, number) not in measured)
                notes[f"round {number} is not measured in {gone}"] = None
            elif pairing is not None and pairing.problem and of[0]:
                notes[f"{arm.name} is not paired with {arms[0].name}: {pairing.problem}"] = None
            for name in names:
                if any(name in one.rows for one in here):
                    cells[name, number, arm.name] = _cell(here, name, pairing)
    return Comparison(tuple(arms), names, tuple(chosen), cells, list(notes))


def _rounds_of(runs: Sequence[Path], wanted: Sequence[int]) -> dict[Path, list[int]]:
    """The measured rounds of each run. Raises UserError if one has none, or lacks a wanted one."""
    there = {run: evaluated_rounds(run) for run in runs}
    for run, numbers in there.items():
        if not numbers:
            raise UserError(f"{run} has measured nothing yet: no round's evaluate is committed")
        for number in set(wanted) - set(numbers):
            have = ", ".join(map(str, numbers))
            raise UserError(f"--round {number}: {run} has no such round; measured so far: {have}")
    return there


def _common_metrics(
    measured: Mapping[tuple[Path, int], Measured], wanted: Sequence[str], notes: dict[str, None]
) -> tuple[str, ...]:
    """The metrics that every run has in some round, in stored order; what is left out is noted."""
    by_run: dict[Path, dict[str, None]] = {}
    for (run, _), one in measured.items():
        by_run.setdefault(run, {}).update(dict.fromkeys(one.rows))
    every = list(dict.fromkeys(name for names in by_run.values() for name in names))
    check_known("metric", wanted, every)
    common = [name for name in every if all(name in names for names in by_run.values())]
    for name in wanted:
        if name not in common:
            without = ", ".join(str(run) for run, names in by_run.items() if name not in names)
            raise UserError(f"--metric {name}: not measured in {without}; in common: {', '.join(common)}")
    if not common:
        had = "; ".join(f"{run}: {', '.join(names)}" for run, names in by_run.items())
        raise UserError(f"these runs have no metric in common ({had})")
    if wanted:
        return tuple(name for name in common if name in wanted)
    if left_out := [name for name in every if name not in common]:
        notes[f"not measured in every run, so left out: {', '.join(left_out)}"] = None
    return tuple(name for name in common if not name.startswith(OF_REAL_CLIPS))


def _cell(of: Sequence[Measured], metric: str, pairing: Pairing | None) -> Cell:
    rows = [m.rows[metric] for m in of if metric in m.rows]
    values = [row["value"] for row in rows if row["value"] is not None]
    kept = {m.kept for m in of}
    single = rows[0] if len(rows) == 1 else None
    return Cell(
        value=fmean(values) if values else None,
        low=single["low"] if single else None,
        high=single["high"] if single else None,
        num_clips=sum(row["num_clips"] for row in rows),
        num_runs=len(values),
        lowest=min(values, default=None),
        highest=max(values, default=None),
        kept=kept.pop() if len(kept) == 1 else None,
        judge=", ".join(sorted({row["judge"] for row in rows} - {""})),
        difference=None if pairing is None else pairing.difference(metric),
    )
