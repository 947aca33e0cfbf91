"""The rows of metrics.parquet: every measure with its interval and the number of clips behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from loop.stages import StageContext
from loop.statistics import Interval, bootstrap_mean
from loop.steps.sample import Take

METRICS = pa.schema(
    [
        ("round", pa.int64()),
        ("metric", pa.string()),
        ("part", pa.string()),
        ("category", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("num_clips", pa.int64()),
        ("judge", pa.string()),
    ]
)


class Rows:
    """Collects metrics with their intervals over prompts.

    A value that is not finite is left out of its mean with a warning. Where nothing is left, the row says so:
    no value, no interval, 0 clips.
    """

    def __init__(self, ctx: StageContext) -> None:
        self.ctx, self.part = ctx, ctx.config.evaluate.part
        self.rows: list[dict[str, Any]] = []

    def add(
        self,
        metric: str,
        values: Sequence[float],
        groups: Sequence[str],
        *,
        category: str = "",
        judge: str = "",
    ) -> None:
        measured = [i for i, value in enumerate(values) if math.isfinite(value)]
        if len(measured) < len(values) and not category:  # the row over all has said it already
            self.ctx.log.warning(
                "%s could not be measured on %d of %d clips, which are left out",
                metric, len(values) - len(measured), len(values),
            )  # fmt: skip
        found = bootstrap_mean([values[i] for i in measured], [groups[i] for i in measured], seed=0)
        self.add_interval(metric, found, category=category, judge=judge)

    def add_by_category(
        self, metric: str, values: Sequence[float], takes: Sequence[Take], *, judge: str = ""
    ) -> None:
        """A row over all takes ("" stands for them), and one for each category that they have."""
        self.add(metric, values, [t.prompt_id for t in takes], judge=judge)
        for category in sorted({t.category for t in takes} - {""}):
            of = [i for i, t in enumerate(takes) if t.category == category]
            groups = [takes[i].prompt_id for i in of]
            self.add(metric, [values[i] for i in of], groups, category=category, judge=judge)

    def add_interval(self, metric: str, found: Interval, *, category: str = "", judge: str = "") -> None:
        exists = math.isfinite(found.value)
        low, high = (end if exists and math.isfinite(end) else None for end in (found.low, found.high))
        self.rows.append(
            {
                "round": self.ctx.round,
                "metric": metric,
                "part": self.part,
                "category": category,
                "value": found.value if exists else None,
                "low": low,
                "high": high,
                "num_clips": found.num if exists else 0,
                "judge": judge,
            }
        )

    def copy(self, metric: str, name: str) -> None:
        """The rows of `metric` once more, as `name`."""
        self.rows += [{**row, "metric": name} for row in self.rows if row["metric"] == metric]
