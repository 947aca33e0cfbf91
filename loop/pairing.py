"""How far one arm of a comparison is from another in one round, take by take where that is possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from loop.measured import Measured
from loop.statistics import Interval, bootstrap_difference, bootstrap_mean


@dataclass(frozen=True)
class Difference:
    """An arm's value less the first arm's. `interval` is None where that cannot be said, `note` says why.

    paired: take by take, over `num_takes` takes of `num_prompts` prompts that both have. lowest, highest: the
    differences of single pairs of runs, where the arms are of several runs.
    """

    interval: Interval | None
    paired: bool = False
    num_takes: int = 0
    num_prompts: int = 0
    lowest: float | None = None
    highest: float | None = None
    note: str = ""


class Pairing:
    """Which run of one arm stands beside which of the other, in one round.

    problem: why not all of them can be paired; "" if they can.
    """

    def __init__(self, first: Sequence[Measured], others: Sequence[Measured]) -> None:
        self.first, self.others = list(first), list(others)
        self.pairs: list[tuple[Measured, Measured]] = []
        self.problem = ""
        left = list(first)
        for other in others:
            partner = next((one for one in left if not setting_problems(one, other)), None)
            if partner is not None:
                left.remove(partner)
                self.pairs.append((partner, other))
        if len(self.pairs) < max(len(first), len(others)):
            self.problem = (
                "; ".join(setting_problems(first[0], others[0]))
                if len(first) == len(others) == 1
                else f"{len(first)} and {len(others)} runs, of which {len(self.pairs)} share prompts, seeds, "
                "clip settings and real clips"
            )
            self.pairs = []

    def difference(self, metric: str) -> Difference:
        sides = self.first, self.others
        if not all(sides) or any(metric not in m.rows for side in sides for m in side):
            return Difference(None, note="not measured in both")
        if any(m.rows[metric]["value"] is None for side in sides for m in side):
            return Difference(None, note="could not be measured (–)")
        together = self.pairs or [(one, other) for one in self.first for other in self.others]
        for one, other in together:
            if note := _not_comparable(one, other, metric):
                return Difference(None, note=note)
        if not self.problem:
            return _paired(self.pairs, metric)
        values = [
            [(value, m.shots[take].prompt_id) for m in side for take, value in m.values(metric).items()]
            for side in sides
        ]
        found = bootstrap_difference(
            *([value for value, _ in values[0]], [group for _, group in values[0]]),
            *([value for value, _ in values[1]], [group for _, group in values[1]]),
            seed=0,
        )
        return Difference(found, num_takes=found.num, note=f"not paired: {self.problem}")


def setting_problems(one: Measured, other: Measured) -> list[str]:
    """What keeps two evaluations from being compared take by take: [] where they filmed the same things."""
    problems = []
    if one.clip != other.clip:
        changed = [k for k in {**one.clip, **other.clip} if one.clip.get(k) != other.clip.get(k)]
        problems.append(f"clip settings differ ({', '.join(changed)})")
    mine, theirs = ({(s.prompt_id, s.prompt) for s in m.shots.values()} for m in (one, other))
    if mine != theirs:
        problems.append(f"prompts differ ({len(mine & theirs)} of {len(mine | theirs)} are in both)")
    elif one.shots != other.shots:
        problems.append("the prompts' seeds differ")
    if one.anchors is None or other.anchors is None:
        problems.append("the table of real clips is gone")
    elif one.anchors != other.anchors:
        shared = len(one.anchors & other.anchors)
        problems.append(f"real clips differ ({shared} of {len(one.anchors | other.anchors)} are in both)")
    return problems


def _not_comparable(one: Measured, other: Measured, metric: str) -> str:
    """Why the difference of a metric would say nothing; "" where it does say something."""
    judges = [m.rows[metric]["judge"] for m in (one, other)]
    if judges[0] != judges[1]:
        return f"other judges ({judges[0] or 'none'} and {judges[1] or 'none'})"
    if metric.partition(" by ")[0].endswith("_vs_base") and one.base_generator() != other.base_generator():
        return "the bases differ, so the opponents do"
    if metric.partition(" by ")[0].endswith("_vs_previous"):
        before = one.previous_clips()
        if not before or before != other.previous_clips():
            return "each run is compared with its own previous round, so the opponents differ"
    if not one.values(metric) or not other.values(metric):
        return "no values of single takes are stored"
    return ""


def _paired(pairs: Sequence[tuple[Measured, Measured]], metric: str) -> Difference:
    """Take by take; a prompt's takes of all pairs of runs are drawn together."""
    differences: list[float] = []
    prompts: list[str] = []
    means: list[float] = []
    left_out = 0
    for one, other in pairs:
        mine, theirs = one.values(metric), other.values(metric)
        beside = one.opponents(metric), other.opponents(metric)
        both = [
            take
            for take in one.shots
            if take in mine and take in theirs and beside[0].get(take) == beside[1].get(take)
        ]
        if not both:
            return Difference(None, note="no take was measured alike in both")
        left_out += len(mine.keys() | theirs.keys()) - len(both)
        found = [theirs[take] - mine[take] for take in both]
        differences += found
        prompts += [one.shots[take].prompt_id for take in both]
        means.append(fmean(found))
    several = len(pairs) > 1
    return Difference(
        bootstrap_mean(differences, prompts, seed=0),
        paired=True,
        num_takes=len(differences),
        num_prompts=len(set(prompts)),
        lowest=min(means) if several else None,
        highest=max(means) if several else None,
        note=f"takes left out, not measured alike in both: {left_out}" if left_out else "",
    )
