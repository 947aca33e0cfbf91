import numpy as np
import pytest

from reward import certainty
from reward.calibration import POOLED, Calibrator
from reward.config import CertaintyConfig
from reward.question import Vote
from reward.voting import DimensionVerdict, Verdict, fold, make_asks
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


def certain(certainty, kind="take_take", calibrated="take_take", score=0.9, flip_rate=0.0, num_votes=4):
    mode = "first" if score > 0.5 else "second" if score < 0.5 else "tie"
    found = DimensionVerdict(score, 1 - score, 0.0, score, mode, 0.0, flip_rate, certainty, calibrated)
    return Verdict(f"q{certainty}", kind, None, "g", {"overall": found}, num_votes, 0)


def kept_at(target, verdicts):
    config = CertaintyConfig(target_precision=target, min_votes=2)
    least = certainty.least_certainties(verdicts, "overall", config)
    return [certainty.why_not_confident(v, "overall", config, least) for v in verdicts]


def test_a_target_precision_keeps_as_many_as_reach_it_together():
    verdicts = [certain(c) for c in (0.6, 0.98, 0.9, 0.8)]  # means from the top: .98, .94, .8933, .82
    below = "below_target_precision"
    assert kept_at(0.9, verdicts) == [below, None, None, below]
    assert kept_at(0.89, verdicts) == [below, None, None, None]
    assert kept_at(0.82, verdicts) == [None] * 4  # .6 is kept, far below min_probability
    assert kept_at(0.99, verdicts) == [below] * 4
    # equally certain ones stand or fall together: one .8 would reach .9 with .98, .92; both do not
    assert kept_at(0.9, [certain(0.98), certain(0.92), certain(0.8), certain(0.8)]) == [
        None,
        None,
        below,
        below,
    ]


def test_a_target_precision_counts_neither_ties_nor_what_nothing_calibrates():
    tie, few = certain(0.99, score=0.5), certain(0.99, num_votes=1)
    assert kept_at(0.9, [certain(0.85), tie, few]) == ["below_target_precision", "tie", "too_few_votes"]
    margins = [certain(0.6, calibrated=None), certain(0.4, calibrated=None)]
    assert kept_at(0.9, margins) == [None, "uncertain"]  # min_margin 0.5 decides
    # each kind reaches the target by itself
    both = [certain(0.95), certain(0.85), certain(0.91, "known", "known"), certain(0.89, "known", "known")]
    assert kept_at(0.9, both) == [None] * 4


def test_flips_are_a_reason_where_nothing_calibrates():
    config = CertaintyConfig(max_flip_rate=0.25, min_margin=0.3)
    reasons = [
        certainty.why_not_confident(certain(0.6, calibrated=c, flip_rate=r), "overall", config)
        for c, r in ((None, 0.25), (None, 0.5), (None, None), ("take_take", 0.5))
    ]
    assert reasons == [None, "flips", "flips", "uncertain"]  # a calibrator has heard of the flips already
    assert (
        certainty.why_not_confident(
            certain(0.6, calibrated=None, flip_rate=None), "overall", CertaintyConfig()
        )
        is None
    )


def test_keys_that_do_nothing_stay_out_of_the_fingerprints():
    plain = {"min_probability": 0.7, "min_margin": 0.5, "min_votes": 2, "min_labels": 50}
    assert CertaintyConfig().model_dump() == plain
    assert CertaintyConfig(isotonic_labels=1000, max_flip_rate=1).model_dump() == plain
    assert CertaintyConfig(target_precision=0.9).model_dump() == {**plain, "target_precision": 0.9}
    given = CertaintyConfig(isotonic_labels=None, human_share=0.2, max_flip_rate=0.5)
    assert CertaintyConfig.model_validate_json(given.model_dump_json()) == given
    assert set(given.model_dump()) - set(plain) == {"isotonic_labels", "human_share", "max_flip_rate"}


def test_weights_of_the_measures_are_repetitions():
    p, y, w = np.array([0.9, 0.7, 0.55]), np.array([1.0, 0.0, 0.5]), np.array([2.0, 0.0, 3.0])
    again = np.repeat([0, 1, 2], [2, 0, 3])
    assert certainty.ece(p, y, weights=w) == pytest.approx(certainty.ece(p[again], y[again]))
    assert certainty.brier_skill(p, y, w) == pytest.approx(certainty.brier_skill(p[again], y[again]))
    assert certainty.brier_skill([0.9], [0.5]) == 0.0


def test_the_most_certain_come_first_and_equal_ones_together():
    found = certainty.coverage_accuracy([0.6, 0.9, 0.9, 0.7], [0, 1, 0, 1], [0.25, 0.5, 0.75, 1.0])
    assert found == pytest.approx([0.5, 0.5, 2 / 3, 0.5])
