"""What the filter of verdicts reaches where the truth is known: precision of what it keeps and what it drops.

For reports alone. Who calls it brings the truth: people's answers, or in benchmarks the embedded world's
oracle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from loop.statistics import Interval, bootstrap_mean
from reward.certainty import least_certainties, why_not_confident
from reward.config import CertaintyConfig
from reward.question import Answer
from reward.voting import Verdict


def filter_precision(
    verdicts: Sequence[Verdict],
    truth: Sequence[Mapping[str, Answer]],
    groups: Sequence[str],
    limits: CertaintyConfig,
    dimension: str = "overall",
    seed: int = 0,
) -> dict[str, Any]:
    """Counts by reason, and how often kept verdicts, and dropped ones that name a side, name the true one.

    Verdicts have their certainty. A truth of tie has no side to name: such verdicts are counted apart and
    are not in the precision. Intervals: bootstrap 95 % over `groups`; null without a verdict to measure on.
    """
    least = least_certainties(verdicts, dimension, limits)
    reasons: Counter[str] = Counter()
    ties: Counter[str] = Counter()
    right: dict[str, list[tuple[float, str]]] = {"kept": [], "dropped": []}
    for verdict, answers, group in zip(verdicts, truth, groups, strict=True):
        score = verdict.dimensions[dimension].score
        reason = why_not_confident(verdict, dimension, limits, least)
        reasons[reason or "kept"] += 1
        where = "kept" if reason is None else "dropped"
        if answers[dimension] == "tie":
            ties[where] += 1
        elif score != 0.5:
            right[where].append((float((score > 0.5) == (answers[dimension] == "first")), group))
    found: dict[str, Any] = {"num": len(verdicts), "reasons": dict(reasons.most_common())}
    for where, rows in right.items():
        interval = bootstrap_mean([r for r, _ in rows], [g for _, g in rows], seed)
        found[where] = {**_as_json(interval), "num_true_ties": ties[where]}
    return found


def _as_json(interval: Interval) -> dict[str, Any]:
    return vars(interval) if interval.num else {"value": None, "low": None, "high": None, "num": 0}
