"""Intervals and tests over groups, since clips of one prompt are not independent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean, or another statistic, with a two-sided bootstrap interval; `num` values in all."""

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
    _check_lengths(values, groups)
    if not len(values):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    means = _draw_means(values, groups, seed, num_draws)
    return _interval(float(np.mean(values)), means, len(values), level)


def bootstrap_difference(
    values: Sequence[float],
    groups: Sequence[str],
    others: Sequence[float],
    other_groups: Sequence[str],
    seed: int,
    level: float = 0.95,
    num_draws: int = 2000,
) -> Interval:
    """Mean of `others` − mean of `values` for two sets that were measured apart, each drawn over its groups.

    Of two sets that share their groups, the paired difference (`bootstrap_mean` of it) says more. No values
    on either side give NaN; `num` counts both sides.
    """
    _check_lengths(values, groups)
    _check_lengths(others, other_groups)
    if not len(values) or not len(others):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    draws = _draw_means(others, other_groups, seed + 1, num_draws) - _draw_means(
        values, groups, seed, num_draws
    )
    found = float(np.mean(others)) - float(np.mean(values))
    return _interval(found, draws, len(values) + len(others), level)


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    groups: Sequence[str],
    seed: int,
    level: float = 0.95,
    num_draws: int = 1000,
) -> Interval:
    """`statistic` of all rows and its percentile interval over resampled groups, as `bootstrap_mean` has it.

    statistic: of weights [N], how often each row was drawn; all ones are the data. An error that cannot be
    negative, such as ECE, is larger on draws than on the data, as it is on the data than in truth: its
    interval errs to the side of caution and may lie above the value.
    """
    if not len(groups):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    index, draws = _draw_groups(groups, seed, num_draws)
    num_groups = draws.shape[1]
    found = [statistic(np.bincount(draw, minlength=num_groups)[index].astype(float)) for draw in draws]
    return _interval(statistic(np.ones(len(groups))), np.array(found), len(groups), level)


def win_rate_interval(
    scores: Sequence[float], groups: Sequence[str], seed: int, alpha: float, num_draws: int = 20_000
) -> Interval:
    """The mean of scores in [0, 1], with bounds that are one-sided at `alpha`, for a decision that spends it.

    Percentiles of a bootstrap over a dozen groups promise too much: at small `alpha` they are wrong several
    times as often. So each bound is the least of three, over groups as `bootstrap_mean` has them: the
    percentile at the level that a normal distribution needs for Student's interval (Hesterberg 2015, The
    American Statistician 69, 371–386, has it as the expanded percentile); Student's own bound; and
    c·alpha^(1/n), c being the largest of n group means: groups that are c with probability alpha^(1/n) and
    else 0 are all c with probability alpha, so that n groups which agree on c show no more than that mean.
    benchmarks/gate_level.py has how often the bound is wrong.
    """
    _check_lengths(scores, groups)
    if not len(scores):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    x = np.asarray(scores, dtype=float)
    low = _lower_bound(x, groups, seed, alpha, num_draws)
    high = 1 - _lower_bound(1 - x, groups, seed, alpha, num_draws)
    return Interval(float(x.mean()), low, high, len(x))


def _lower_bound(x: np.ndarray, groups: Sequence[str], seed: int, alpha: float, num_draws: int) -> float:
    from scipy.special import ndtr, stdtrit

    index, draws = _draw_groups(groups, seed, num_draws)
    num = draws.shape[1]
    sums, counts = np.bincount(index, weights=x, minlength=num), np.bincount(index, minlength=num)
    bounds = [float((sums / counts).max()) * alpha ** (1 / num)]
    if num > 1:
        t = float(stdtrit(num - 1, alpha))  # negative
        off = sums - counts * x.mean()
        bounds.append(float(x.mean() + t * math.sqrt(num / (num - 1) * (off**2).sum()) / len(x)))
        means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
        bounds.append(float(np.quantile(means, ndtr(t * math.sqrt(num / (num - 1))))))
    return max(0.0, min(bounds))


def widened_for_folds(found: Interval, num_groups: int, num_folds: int) -> Interval:
    """A bootstrap interval of held-out scores, as wide as it is where the models are trained anew, too.

    Resampling the scores leaves out that the folds share their training data: by the correction of Nadeau and
    Bengio (2003, Machine Learning 52, 239–281) the variance of the mean over K folds is not S²/K but
    S² (1/K + 1/(K − 1)), a factor of 1 + K / (K − 1). And with few groups a percentile is narrower than
    Student's interval. benchmarks/auc_coverage.py has what remains. The ends stay in [0, 1].
    """
    from scipy.special import ndtri, stdtrit

    factor = math.sqrt(1 + num_folds / (num_folds - 1)) * float(stdtrit(num_groups - 1, 0.975) / ndtri(0.975))
    low, high = (found.value + factor * (end - found.value) for end in (found.low, found.high))
    return Interval(found.value, max(0.0, low), min(1.0, high), found.num)


@dataclass(frozen=True)
class SignTest:
    """How many groups have a mean above and below zero, and how likely that is where both are alike.

    p_above: of so many above or more; p_below: of so many below or more. One-sided, exact.
    """

    num_above: int
    num_below: int
    p_above: float
    p_below: float

    @property
    def num_groups(self) -> int:
        """Groups that lean to either side."""
        return self.num_above + self.num_below


def sign_test(values: Sequence[float], groups: Sequence[str]) -> SignTest:
    """Whether group means of `values` lean to one side of zero. Groups at zero say nothing.

    It assumes no shape and holds for a handful of groups, where percentiles of a bootstrap do not: fewer than
    log₂(1/α) of them can never be significant at α.
    """
    if len(values) != len(groups):
        raise ValueError(f"{len(values)} values but {len(groups)} groups")
    names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    sums = np.bincount(index, weights=np.asarray(values, dtype=float), minlength=len(names))
    above, below = int((sums > 1e-9).sum()), int((sums < -1e-9).sum())
    return SignTest(above, below, coin_tail(above + below, above), coin_tail(above + below, below))


def coin_tail(num: int, least: int) -> float:
    """The probability of `least` heads or more in `num` throws of a fair coin."""
    return sum(math.comb(num, k) for k in range(least, num + 1)) / 2**num


def _draw_groups(groups: Sequence[str], seed: int, num_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """The number of each row's group [N], and the numbers of the groups that are drawn [draws, groups]."""
    names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if len(names) == 1:
        names = index = np.arange(len(groups))
    return index, np.random.default_rng(seed).integers(len(names), size=(num_draws, len(names)))


def _draw_means(values: Sequence[float], groups: Sequence[str], seed: int, num_draws: int) -> np.ndarray:
    """The means [draws] of `values` over resampled groups."""
    index, draws = _draw_groups(groups, seed, num_draws)
    sums = np.bincount(index, weights=np.asarray(values, dtype=float), minlength=draws.shape[1])
    counts = np.bincount(index, minlength=draws.shape[1])
    return sums[draws].sum(axis=1) / counts[draws].sum(axis=1)


def _check_lengths(values: Sequence[float], groups: Sequence[str]) -> None:
    if len(values) != len(groups):
        raise ValueError(f"{len(values)} values but {len(groups)} groups")


def _interval(value: float, draws: np.ndarray, num: int, level: float) -> Interval:
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(value, float(low), float(high), num)
