"""Clustered bootstrap intervals against what theory says."""

import math

import numpy as np
import pytest

from loop.statistics import bootstrap, bootstrap_mean


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
