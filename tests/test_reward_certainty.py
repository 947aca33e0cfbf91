import numpy as np
import pytest

from reward import certainty
from reward.calibration import POOLED, Calibrator
from reward.config import CertaintyConfig
from reward.question import Vote
from reward.voting import fold, make_asks
from tests.reward_clips import question


def simulate(num, accuracy, seed, num_ballots=3, kind="known"):
    """Verdicts of a judge whose votes are right with probability `accuracy`, and the truth."""
    rng = np.random.default_rng(seed)
    verdicts, truths = [], []
    for i in range(num):
        q = question(f"q{i}")
        truth = "first" if rng.random() < 0.5 else "second"
        votes = []
        for ask in make_asks(q, num_ballots):
            says = truth if rng.random() < accuracy else {"first": "second", "second": "first"}[truth]
            shown = {"first": "second", "second": "first"}[says] if ask.swapped else says
            votes.append(
                Vote(q.id, ask.swapped, ask.ballot, ask.seed, dict.fromkeys(q.dimensions, shown), "")
            )
        verdict = fold(q, votes)
        verdicts.append(verdict.__class__(**{**verdict.__dict__, "kind": kind}))
        truths.append(dict.fromkeys(q.dimensions, truth))
    return verdicts, truths


def test_a_kind_without_labels_says_so():
    (verdict, *_), _ = simulate(1, 1.0, 0, kind="take_take")
    found = certainty.apply(verdict, {"known": Calibrator("known", {POOLED: 1.0}, {POOLED: 9})}).dimensions[
        "overall"
    ]
    assert found.calibrated_for is None
    assert found.certainty == 1.0
    (verdict, *_), _ = simulate(1, 1.0, 0)
    found = certainty.apply(verdict, {"known": Calibrator("known", {POOLED: 1.0}, {POOLED: 9})}).dimensions[
        "overall"
    ]
    assert found.calibrated_for == "known"
    assert 0.5 < found.certainty < 1.0


def test_the_reasons_for_not_using_a_verdict_are_told_apart():
    config = CertaintyConfig(min_margin=0.6, min_votes=4)
    sure, _ = simulate(1, 1.0, 0, kind="take_take")
    assert certainty.why_not_confident(certainty.apply(sure[0], {}), "overall", config) is None
    few, _ = simulate(1, 1.0, 0, num_ballots=1, kind="take_take")
    assert certainty.why_not_confident(certainty.apply(few[0], {}), "overall", config) == "too_few_votes"
    split = [
        v for v in simulate(60, 0.6, 0, kind="take_take")[0] if 0.5 < v.dimensions["overall"].score < 0.75
    ]
    assert certainty.why_not_confident(certainty.apply(split[0], {}), "overall", config) == "uncertain"
    even = [v for v in simulate(60, 0.5, 0, kind="take_take")[0] if v.dimensions["overall"].score == 0.5]
    assert certainty.why_not_confident(certainty.apply(even[0], {}), "overall", config) == "tie"


def test_measures_on_hand_derived_numbers():
    assert certainty.ece([0.95, 0.95, 0.05, 0.05], [1, 1, 0, 1]) == pytest.approx(0.5 * 0.05 + 0.5 * 0.45)
    assert certainty.brier_skill([1.0, 0.0], [1, 0]) == 1.0
    assert certainty.brier_skill([0.5, 0.5], [1, 0]) == 0.0
    np.testing.assert_allclose(certainty.pce(np.array([0.0, 1.0]), 0.0, 1.0), [0.5, 1 / (1 + np.exp(-1))])
