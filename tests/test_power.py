"""The gate's power: formulas by hand, and a gate that is run a few hundred times on made-up scores."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from loop import power
from loop.cli import app
from loop.config import GateConfig
from loop.config_file import load_config
from loop.power import Spread
from loop.statistics import win_rate_interval

SHIPPED = sorted(file.stem for file in (Path(__file__).parents[1] / "configs").glob("*.yaml"))


def test_the_error_of_all_attempts_sums_to_alpha():
    assert power.attempt_alpha(0.1, 1) == pytest.approx(0.0608, abs=1e-4)
    spent = sum(power.attempt_alpha(0.1, k) for k in range(1, 100_000))
    assert 0.0999 < spent < 0.1


def test_spread_by_hand():
    # means 1 and 0: all of the variance lies between prompts
    assert power.measured_spread([1, 1, 0, 0], list("aabb")) == Spread(0.5, 1.0)
    # means alike: none does
    assert power.measured_spread([1, 0, 1, 0], list("aabb")) == Spread(0.25, 0.0)
    assert power.measured_spread([1, 0, 1], list("abc")) == Spread(pytest.approx(1 / 3), 0.0)
    assert power.measured_spread([0.5] * 4, list("aabb")) == Spread(0.0, 0.0)
    assert power.measured_spread([1, 0], list("aa")) is None and power.measured_spread([], []) is None
    uneven = power.measured_spread([1, 1, 1, 1, 0, 0], list("aaabcc"))
    # every prompt agrees with itself, so that nothing varies within; (6 − 14/6) / 2 = 11/6 scores a prompt
    between = (3 * (1 / 3) ** 2 + (1 / 3) ** 2 + 2 * (2 / 3) ** 2) / 2
    assert uneven == Spread(pytest.approx(between / (11 / 6)), 1.0)


def test_the_standard_error_of_a_measured_spread_is_that_of_the_prompt_means():
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=(12, 1)) * 0.4 + rng.uniform(size=(12, 5)) * 0.6
    spread = power.measured_spread(scores.ravel().tolist(), np.repeat(np.arange(12), 5).astype(str).tolist())
    assert spread is not None and 0 < spread.clustering < 1
    assert spread.error(12, 5) == pytest.approx(scores.mean(axis=1).std(ddof=1) / math.sqrt(12))


def test_detectable_and_needed_by_hand():
    spread = Spread(0.25, 0.0)  # σ = ½: with 100 prompts the standard error is 0.05
    # Student's quantiles with 99 degrees of freedom: t(.95) + t(.8) = 1.6604 + 0.8453
    assert power.detectable(spread, 100, 1, 0.05, 0.5) == pytest.approx(0.5 + 2.5057 * 0.05, abs=1e-4)
    needed = power.prompts_needed(spread, 1, 0.05, 0.5)
    # t(.95) + t(.8) = 1.6547 + 0.8441 with 156 of them; the smallest n from (2.4988 · 0.5 / 0.1)² on
    assert needed == math.ceil((2.4988 * 0.5 / 0.1) ** 2) == 157
    # seeds of a prompt that agree entirely are worth one
    assert power.prompts_needed(Spread(0.25, 1.0), 6, 0.05, 0.5) == 157
    assert power.prompts_needed(spread, 1, 0.05, 0.6) is None
    # twelve prompts that agree show no more than a twelfth root of α of their rate
    assert power.detectable(Spread(0.0, 0.0), 12, 6, 0.05, 0.4) == pytest.approx(0.4 / 0.05 ** (1 / 12))
    # of a single prompt the seeds are what is drawn; of a single comparison nothing is seen
    assert power.detectable(spread, 1, 100, 0.05, 0.5) == power.detectable(spread, 100, 1, 0.05, 0.5)
    assert power.detectable(spread, 1, 1, 0.05, 0.5) == 10


@pytest.mark.parametrize(("num", "seeds", "alpha"), [(40, 3, 0.05), (12, 6, 0.0608)])
def test_a_gate_sees_the_detectable_rate_in_about_four_of_five_cases(num, seeds, alpha):
    rng = np.random.default_rng(1)
    # a prompt's own rate varies by ±0.2 around the mean, each comparison is won or lost
    share = 0.2**2 / 3 / 0.25
    rate = power.detectable(Spread(0.25, share), num, seeds, alpha, 0.5)
    prompts = np.repeat(np.arange(num), seeds).astype(str).tolist()
    kept = 0
    for trial in range(300):
        own = np.repeat(rate + rng.uniform(-0.2, 0.2, size=num), seeds)
        wins = (rng.uniform(size=num * seeds) < own).astype(float).tolist()
        kept += win_rate_interval(wins, prompts, trial, alpha, num_draws=1000).low > 0.5
    assert 0.72 < kept / 300 < 0.88


def test_the_report_says_what_was_measured_or_assumed():
    settings = GateConfig(num_seeds=2, margin=0.0)
    found = power.report(settings, Spread(0.16, 0.5), 24, 2, 0.0152)
    assert found["standard_deviation"] == 0.4 and found["measured"] and found["prompts_for_gain"] > 24
    assert f"sees a win rate of {found['detectable']:.3f} with 80% probability" in power.sentence(found)
    few = power.report(settings, None, 2, 1, 0.06)
    assert few["detectable"] is None and "sees no win rate" in power.sentence(few)
    assert "assumed: standard deviation 0.50" in power.sentence(few)
    never = power.report(GateConfig(margin=0.0), Spread(0.0, 0.0), 4, 1, 0.06)
    assert never["prompts_for_gain"] == 16  # prompts that all agree: .5 · .06^(−1/16) = .596


@pytest.mark.parametrize("name", SHIPPED)
def test_no_shipped_gate_is_closed_from_the_start(name):
    """In its last round, too: n prompts (of a single one, the seeds) show no more than α^(1/n)."""
    config = load_config(name).config
    part = config.data.split.gate
    num = part if isinstance(part, int) else len(part)
    error = power.attempt_alpha(config.gate.alpha, config.rounds)
    shown = error ** (1 / (num if num > 1 else config.gate.num_seeds))
    assert not config.gate.enabled or 0.5 - config.gate.margin < shown


def test_a_dry_run_says_what_the_gate_will_see():
    done = CliRunner().invoke(app, ["run", "quickstart", "--dry-run"])
    assert done.exit_code == 0
    assert (
        "if the gate part has 12 prompts: with 12 prompts of 6 seeds the gate sees a win rate of"
        in done.stderr
    )
    assert "a win rate of 0.60 takes 14 prompts; at attempt 3 the gate sees 0.7" in done.stderr
    gate_off = ["--set", "gate.enabled=false", "--set", "alarms=null"]
    off = CliRunner().invoke(app, ["run", "quickstart", "--dry-run", *gate_off])
    assert off.exit_code == 0
    assert "the gate sees" not in off.stderr
