"""Clustered bootstrap intervals against what theory says."""

import math

import numpy as np
import pytest

from loop.statistics import Interval, bootstrap, bootstrap_mean, widened_for_folds, win_rate_interval


def test_interval_is_that_of_the_group_means():
    rng = np.random.default_rng(0)
    means = rng.normal(0.6, 0.2, size=40)
    values, groups = np.repeat(means, 5), np.repeat([f"g{i}" for i in range(40)], 5)
    found = bootstrap_mean(values.tolist(), groups.tolist(), seed=1)
    half = 1.96 * means.std(ddof=1) / math.sqrt(40)
    assert found.value == pytest.approx(means.mean()) and found.num == 200
    assert found.high - found.low == pytest.approx(2 * half, rel=0.12)
    # five copies of each value are no new evidence: without the groups the interval would be √5 narrower
    alone = bootstrap_mean(values.tolist(), [str(i) for i in range(200)], seed=1)
    assert (found.high - found.low) / (alone.high - alone.low) == pytest.approx(math.sqrt(5), rel=0.15)


def test_edges():
    empty = bootstrap_mean([], [], seed=0)
    assert math.isnan(empty.value) and empty.num == 0
    one = bootstrap_mean([1.0, 0.0], ["a", "a"], seed=0)  # a single group must not look certain
    assert (one.value, one.low, one.high) == (0.5, 0.0, 1.0)
    with pytest.raises(ValueError, match="groups"):
        bootstrap_mean([1.0], [], seed=0)
    assert bootstrap_mean([0.1, 0.9], ["a", "b"], seed=3) == bootstrap_mean([0.1, 0.9], ["a", "b"], seed=3)


def test_a_statistic_of_weights_has_the_interval_of_the_mean_it_computes():
    values, groups = np.array([0.1, 0.9, 0.4, 0.4, 0.7]), list("aabbc")
    mean = bootstrap_mean(values.tolist(), groups, seed=4, num_draws=300)
    found = bootstrap(lambda w: float((w * values).sum() / w.sum()), groups, seed=4, num_draws=300)
    assert (found.value, found.low, found.high) == pytest.approx((mean.value, mean.low, mean.high))
    assert found.num == 5 and math.isnan(bootstrap(lambda w: 0.0, [], seed=0).value)


def test_bounds_of_a_win_rate_by_hand():
    twelve = [f"p{i // 2}" for i in range(24)]
    # twelve prompts that are all won, or all tied: at .05 no more than a twelfth root of it is shown
    for score in (1.0, 0.5):
        found = win_rate_interval([score] * 24, twelve, 0, 0.05)
        assert found.low == pytest.approx(score * 0.05 ** (1 / 12))
        assert found.high == pytest.approx(1 - (1 - score) * 0.05 ** (1 / 12))
    # a single comparison shows next to nothing, nor does a prompt's one pair of seeds
    assert win_rate_interval([0.75], ["a"], 0, 0.05).low == pytest.approx(0.75 * 0.05)
    assert win_rate_interval([1.0, 1.0], ["a", "a"], 0, 0.05).low == pytest.approx(0.05**0.5)
    # Student's bound with 11 degrees of freedom, t(.05) = −1.7959; a prompt's mean is .2 or .8
    wins = [0.8 if i // 2 % 2 else 0.2 for i in range(24)]
    by_hand = 0.5 - 1.7959 * math.sqrt(0.09 * 12 / 11) / math.sqrt(12)
    found = win_rate_interval(wins, twelve, 0, 0.05)
    assert found.low == pytest.approx(by_hand, abs=0.015) and found.low <= by_hand + 1e-4
    assert found.high == pytest.approx(1 - found.low, abs=0.015) and found.value == pytest.approx(0.5)
    assert math.isnan(win_rate_interval([], [], 0, 0.05).low)


def test_an_interval_of_folds_is_wider_by_hand():
    # √(1 + 5/4) = 1.5 for five folds, t(.975) with 23 degrees of freedom 2.0687 to 1.9600
    found = widened_for_folds(Interval(0.6, 0.5, 0.8, 9), 24, 5)
    assert (found.value, found.num) == (0.6, 9)
    assert (found.low, found.high) == pytest.approx((0.6 - 0.1 * 1.5832, 0.6 + 0.2 * 1.5832), abs=1e-4)
    assert widened_for_folds(Interval(0.9, 0.8, 0.99, 9), 24, 5).high == 1


def test_few_groups_make_an_interval_too_narrow():
    """What docs/measures.md says of it: in how many of 600 cases the 95 % interval has the truth."""
    rng, covered = np.random.default_rng(0), []
    for num in (3, 6, 12, 24):
        groups = [str(i) for i in range(num)]
        found = [bootstrap_mean(rng.normal(size=num).tolist(), groups, i, num_draws=500) for i in range(600)]
        covered.append(np.mean([f.low <= 0 <= f.high for f in found]))
    assert covered == pytest.approx([0.74, 0.87, 0.91, 0.93], abs=0.03)


def test_the_bound_is_wrong_as_seldom_as_it_says():
    """Six prompts of six seeds, the win rate is just the one to exceed: a percentile is wrong in 3.5 %."""
    rng, prompts, alpha = np.random.default_rng(0), [str(i // 6) for i in range(36)], 0.0152
    wrong = plain = 0
    for trial in range(1200):
        wins = (rng.random(36) < np.repeat(rng.beta(2, 2, 6), 6)).astype(float).tolist()
        wrong += win_rate_interval(wins, prompts, trial, alpha, num_draws=1000).low > 0.5
        plain += bootstrap_mean(wins, prompts, trial, 1 - 2 * alpha, num_draws=1000).low > 0.5
    assert wrong / 1200 <= alpha + 2 * math.sqrt(alpha / 1200) < plain / 1200
