"""Intervals: clustered bootstraps, since clips of one prompt are not independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean with a two-sided bootstrap interval; `num` values in all."""

    value: float
    low: float
    high: float
    num: int


def bootstrap_mean(
    values: Sequence[float], groups: Sequence[str], seed: int, level: float = 0.95, num_draws: int = 2000
) -> Interval:
    """The mean of `values` and its percentile interval over resampled groups.

    Whole groups (prompts, anchors) are drawn with replacement. A single group has no spread to learn from:
    its values are drawn instead, and the interval speaks of that group alone. No values give NaN.
    """
    if len(values) != len(groups):
        raise ValueError(f"{len(values)} values but {len(groups)} groups")
    if not len(values):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if len(names) == 1:
        names = index = np.arange(len(values))
    sums = np.bincount(index, weights=np.asarray(values, dtype=float), minlength=len(names))
    counts = np.bincount(index, minlength=len(names))
    draws = np.random.default_rng(seed).integers(len(names), size=(num_draws, len(names)))
    means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(np.mean(values)), float(low), float(high), len(values))
