"""Calibrators: antisymmetric, monotone, right on hand-derived numbers, and the same after a file."""

import json
import math

import numpy as np
import pytest

from reward import calibration, certainty
from reward.calibration import KNOWN_SEGMENT, POOLED, Calibrator, Curve, fit_curve
from reward.voting import DimensionVerdict, Verdict
from tests.test_reward_certainty import simulate


def verdict(score, num_votes=2, kind="known", segment=None):
    mode = "first" if score > 0.5 else "second" if score < 0.5 else "tie"
    found = DimensionVerdict(score, 1 - score, 0.0, score, mode, 0.0, 0.0)
    return Verdict("q", kind, segment, "g", {"motion": found, "overall": found}, num_votes, 0)


def labels(*answers):
    return [{"motion": a, "overall": a} for a in answers]


def test_calibrated_probabilities_are_calibrated_on_other_questions():
    calibrator = calibration.fit("known", *simulate(1500, 0.65, 0))
    verdicts, truths = simulate(1500, 0.65, 1)
    p = [calibrator.probability("overall", v.dimensions["overall"], v.num_votes) for v in verdicts]
    y = [float(t["overall"] == "first") for t in truths]
    assert certainty.ece(p, y) < 0.04
    assert certainty.brier_skill(p, y) > 0.2


def test_a_calibrator_is_antisymmetric_and_never_negative():
    calibrator = calibration.fit("known", *simulate(200, 0.7, 0))
    verdicts, _ = simulate(20, 0.6, 3)
    for verdict in verdicts:
        found = verdict.dimensions["overall"]
        mirror = found.__class__(**{**found.__dict__, "score": 1 - found.score})
        n = verdict.num_votes
        total = calibrator.probability("overall", found, n) + calibrator.probability("overall", mirror, n)
        assert total == pytest.approx(1.0, abs=1e-12)
    assert calibration.fit("known", *simulate(200, 0.3, 0)).slopes[POOLED] == 0.0


def test_dimensions_with_few_labels_share_the_pooled_slope():
    calibrator = calibration.fit("known", *simulate(30, 0.7, 0), min_labels=50)
    assert set(calibrator.slopes) == {POOLED}
    assert calibrator.num_labels == {"motion": 30, "overall": 30, POOLED: 60}


# right and wrong at each smoothed logit
HAND = [(1.0, 1.0)] * 3 + [(-1.0, 1.0)] + [(2.0, 1.0), (-2.0, 1.0)] + [(-3.0, 0.0)] * 8


def test_a_curve_is_the_hand_derived_one():
    """At 1 three of 4 are right, at 2 one of 2: pooled 4 of 6. At 3 all 8: 9 of 10 with one of each added."""
    curve = fit_curve(HAND)
    assert curve(1.0) == pytest.approx(2 / 3) and curve(2.0) == pytest.approx(2 / 3)
    assert curve(3.0) == pytest.approx(0.9) and curve(99.0) == pytest.approx(0.9)
    assert curve(2.5) == pytest.approx((2 / 3 + 0.9) / 2)  # linear between knots
    assert curve(0.5) == pytest.approx((0.5 + 2 / 3) / 2) and curve(0.0) == 0.5


def test_a_curve_is_antisymmetric_to_the_last_bit_and_monotone():
    rng = np.random.default_rng(0)
    x = rng.normal(0, 2, 3000)
    curve = fit_curve(
        list(zip(x.tolist(), (rng.random(3000) < 1 / (1 + np.exp(-x))).astype(float), strict=True))
    )
    grid = np.linspace(-9, 9, 2001).tolist()
    values = [curve(z) for z in grid]
    assert all(curve(-z) == 1 - p and 1 - curve(-z) == p for z, p in zip(grid, values, strict=True))
    assert np.all(np.diff(values) >= 0) and 0 < values[0] < 0.2 and 0.8 < values[-1] < 1


def test_a_judge_that_is_always_wrong_says_nothing():
    curve = fit_curve([(1.0, 0.0), (2.0, 0.0), (-3.0, 1.0)] * 400)
    assert {curve(x) for x in (-5.0, -1.5, 0.0, 1.0, 4.0)} == {0.5}
    assert fit_curve([(0.0, 1.0), (0.0, 0.0)])(2.0) == 0.5  # and so does one that names no side


def test_no_certainty_without_a_limit():
    """k labels that are all right give (k + 1) / (k + 2), Laplace's rule of succession; never 1."""
    assert fit_curve([(1.0, 1.0)] * 8)(5.0) == pytest.approx(9 / 10)


def test_a_curve_mends_what_is_known_to_be_wrong():
    """Unanimous votes that are right in 700 of 1,000: 1 is .3 too much, the curve's 701 / 1,002 is not."""
    verdicts = [verdict(1.0)] * 500 + [verdict(0.0)] * 500
    truth = labels(*["first"] * 350, *["second"] * 500, *["first"] * 150)
    y = [float(t["overall"] == "first") for t in truth]
    before = [v.dimensions["overall"].score for v in verdicts]
    calibrator = calibration.fit("known", verdicts, truth)
    after = [calibrator.probability("overall", v.dimensions["overall"], 2) for v in verdicts]
    assert certainty.ece(before, y) == pytest.approx(0.3)
    assert certainty.ece(after, y) == pytest.approx(0.7 - 701 / 1002, abs=1e-9)
    assert certainty.brier_skill(before, y) == pytest.approx(1 - 0.3 / 0.25)
    # 1 − (p² · 0.3 + (1 − p)² · 0.7) / 0.25 at p = 0.7
    assert certainty.brier_skill(after, y) == pytest.approx(1 - 0.21 / 0.25, abs=1e-4)


def test_a_curve_follows_what_no_slope_can():
    """Right in 60 % of close verdicts and in 60 % of unanimous ones: the slope is off, the curve is not."""
    rng = np.random.default_rng(1)

    def questions(num):
        truth = rng.integers(2, size=num)
        right, wide = rng.random(num) < 0.6, rng.random(num) < 0.5
        first = np.where(right, truth == 0, truth == 1)
        score = np.where(wide, 1.0, 0.625)
        made = [verdict(s if f else 1 - s, num_votes=8) for s, f in zip(score, first, strict=True)]
        return made, labels(*np.where(truth == 0, "first", "second"))

    train, (verdicts, truth) = questions(4000), questions(4000)
    y = [float(t["overall"] == "first") for t in truth]
    slope = calibration.fit("known", *train, isotonic_labels=None)
    curve = calibration.fit("known", *train)
    errors = {}
    for name, c in (("slope", slope), ("curve", curve)):
        p = [c.probability("overall", v.dimensions["overall"], v.num_votes) for v in verdicts]
        errors[name] = certainty.ece(p, y)
    assert errors["curve"] < 0.02 < 0.03 < errors["slope"]


def test_the_number_of_labels_chooses_slope_or_curve():
    verdicts, truth = [verdict(1.0), verdict(0.5)] * 10, labels(*["first", "tie"] * 10)
    few = calibration.fit("known", verdicts, truth, 5, 21)
    assert set(few.slopes) == {"motion", "overall", POOLED} and few.curves == {}
    many = calibration.fit("known", verdicts, truth, 5, 20)
    assert many.slopes == {} and set(many.curves) == {"motion", "overall", POOLED}
    never = calibration.fit("known", verdicts, truth, 5, None)
    assert never == few
    # 20 questions are 40 pooled labels, but 20 pieces of evidence
    pooled = calibration.fit("known", verdicts, truth, 21, 21)
    assert set(pooled.slopes) == {POOLED} and pooled.num_labels[POOLED] == 40


def test_known_segments_are_calibrated_apart_where_labels_are_enough():
    """Whole clips: unanimous and always right. Segments: unanimous and right half of the time."""
    whole, parts = [verdict(1.0)] * 10, [verdict(1.0, segment=2)] * 10
    truth = labels(*["first"] * 15, *["second"] * 5)
    found = calibration.fit_known(whole + parts, truth, min_labels=10)
    assert set(found) == {"known", KNOWN_SEGMENT}
    assert found["known"].slopes["overall"] > 1 and found[KNOWN_SEGMENT].slopes["overall"] < 0.01
    of_segment = certainty.apply(verdict(1.0, segment=2), found).dimensions["overall"]
    assert of_segment.calibrated_for == KNOWN_SEGMENT and of_segment.certainty == pytest.approx(0.5, abs=0.01)
    assert certainty.apply(verdict(1.0), found).dimensions["overall"].certainty > 0.8
    few = calibration.fit_known(whole + parts, truth, min_labels=11)
    assert few == {"known": calibration.fit("known", whole + parts, truth, min_labels=11)}
    assert certainty.apply(verdict(1.0, segment=2), few).dimensions["overall"].calibrated_for == "known"


def test_known_segments_say_nothing_about_segments_of_takes():
    found = {KNOWN_SEGMENT: Calibrator(KNOWN_SEGMENT, {POOLED: 1.0}, {POOLED: 99})}
    take = certainty.apply(verdict(1.0, kind="segment", segment=2), found)
    assert take.dimensions["overall"].calibrated_for is None


def test_labels_of_one_dimension_leave_the_others_uncalibrated():
    verdicts = [verdict(1.0, kind="take_take")] * 60
    found = calibration.fit("take_take", verdicts, [{"overall": "first"}] * 60, pooled=False)
    assert found.covers("overall") and not found.covers("motion")
    applied = certainty.apply(verdicts[0], {"take_take": found}).dimensions
    assert (applied["overall"].calibrated_for, applied["motion"].calibrated_for) == ("take_take", None)


def test_calibrators_survive_a_file(tmp_path):
    calibrators = {"known": calibration.fit("known", *simulate(60, 0.7, 0))}
    calibration.save(calibrators, tmp_path / "calibrators.json")
    assert calibration.load(tmp_path / "calibrators.json") == calibrators

    curve = Calibrator("take_take", {}, {"overall": 1200}, {"overall": Curve((0.5, 1.5), (0.6, 0.9))})
    calibration.save({**calibrators, "take_take": curve}, tmp_path / "calibrators.json")
    again = calibration.load(tmp_path / "calibrators.json")
    assert again == {**calibrators, "take_take": curve}
    assert again["take_take"].curves["overall"](-1.0) == 0.25


def test_files_without_curves_are_read_and_written_as_before(tmp_path):
    old = {"known": {"num_labels": {"pooled": 384}, "slopes": {"pooled": 1.5}}}
    file = tmp_path / "calibrators.json"
    file.write_text(json.dumps(old, indent=1, sort_keys=True) + "\n")
    text, found = file.read_text(), calibration.load(file)
    assert found == {"known": Calibrator("known", {"pooled": 1.5}, {"pooled": 384})}
    p = found["known"].probability("motion", verdict(1.0).dimensions["motion"], 2)
    assert p == pytest.approx(1 / (1 + math.exp(-1.5 * math.log(5))))  # (2 + ½) / 3 = 5 / 6
    calibration.save(found, file)
    assert file.read_text() == text
