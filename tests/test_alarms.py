"""Each alarm against answers and numbers made up for it: what raises it, and what just does not."""

from __future__ import annotations

import pytest

from loop.alarm_config import NAMES, AlarmsConfig
from loop.alarms import (
    Answered,
    collapse_alarms,
    divergence_alarms,
    drift_alarms,
    judge_alarms,
    pass_probability,
    preferred_flaws,
    saturation_alarms,
)
from loop.statistics import coin_tail, sign_test

USUAL = AlarmsConfig()


def answers(kind: str, scores: list[float], flip: float = 0.0, per_group: int = 1) -> list[Answered]:
    return [Answered(f"{kind}-{i}", kind, f"{kind}-g{i // per_group}", s, flip) for i, s in enumerate(scores)]


def honest(num: int = 24) -> list[Answered]:
    """Right in all but every sixth probe, which it leaves undecided."""
    scores = [0.5 if i % 6 == 5 else 1.0 for i in range(num)]
    flaws = [a for kind in ("frozen", "saturated", "blurred") for a in answers(kind, scores)]
    return flaws + answers("wrong_caption", [s for s in scores for _ in range(2)], per_group=2)


def replaced(kind: str, scores: list[float], per_group: int = 1) -> list[Answered]:
    return [a for a in honest() if a.kind != kind] + answers(kind, scores, per_group=per_group)


def names(alarms: list) -> list[str]:
    return [alarm.name for alarm in alarms]


def test_sign_test_is_the_binomial_over_groups():
    found = sign_test([1, 1, -0.5, 0.2, 0.0], ["a", "a", "a", "b", "c"])  # a: +1.5, b: +0.2, c says nothing
    assert (found.num_above, found.num_below, found.num_groups) == (2, 0, 2)
    assert (found.p_above, found.p_below) == (0.25, 1.0)
    assert coin_tail(10, 9) == pytest.approx(11 / 1024) and coin_tail(0, 0) == 1
    assert sign_test([], []).p_above == 1
    with pytest.raises(ValueError, match="groups"):
        sign_test([1.0], [])


def test_pass_probability_by_hand():
    # 7 of 7 is the fewest that pass at 0.01: (1/2)^7 < 0.01 < (1/2)^6
    assert pass_probability(6, 0.9, 0.1, 0.01) == 0
    assert pass_probability(7, 0.9, 0.1, 0.01) == pytest.approx(0.9**7)
    # of 8 also 7 above and one at zero passes, but 7 to 1 does not (9/256)
    assert pass_probability(8, 0.8, 0.1, 0.01) == pytest.approx(0.8**8 + 8 * 0.8**7 * 0.1)


def test_an_honest_judge_raises_none():
    assert judge_alarms(honest(), answers("blur", [1.0, 0.5] * 12), USUAL) == []


@pytest.mark.parametrize("vice", ["frozen", "saturated", "blurred"])
def test_a_loved_flaw_is_named_and_a_tolerated_one_is_not(vice):
    # a third of α for each flaw: 9 decided clips against none (1/512), but not 8 (1/256), nor 12 to 4
    assert names(judge_alarms(replaced(vice, [0.0] * 9 + [0.5] * 15), [], USUAL)) == [f"loves_{vice}"]
    assert judge_alarms(replaced(vice, [0.0] * 8 + [0.5] * 16), [], USUAL) == []
    assert judge_alarms(replaced(vice, [0.0] * 12 + [1.0] * 4 + [0.5] * 8), [], USUAL) == []
    [alarm] = judge_alarms(replaced(vice, [0.0] * 24), [], USUAL)
    assert (alarm.value, alarm.threshold) == (1.0, 0.5) and "24 of 24 decided clips" in alarm.reason


def test_questions_of_one_clip_are_one_piece_of_evidence():
    assert preferred_flaws(answers("blur", [0.0] * 12), "prefers", USUAL)
    assert not preferred_flaws(answers("blur", [0.0] * 12, per_group=6), "prefers", USUAL)


def test_known_answers_are_tested_by_kind():
    known = answers("blur", [0.0] * 9) + answers("noise", [1.0] * 9) + answers("drop", [0.0] * 7)
    assert names(preferred_flaws(known, "prefers", USUAL)) == ["prefers_blur"]
    assert {"prefers_blur", "loves_frozen", "ignores_caption"} <= set(NAMES)


def test_ignoring_the_caption_is_right_once_in_every_pair():
    [alarm] = judge_alarms(replaced("wrong_caption", [1.0, 0.0] * 24, per_group=2), [], USUAL)
    assert alarm.name == "ignores_caption" and alarm.value == 0.5
    assert "follows the caption in 0 of 24 pairs, against it in 0" in alarm.reason
    # 7 pairs of 24 that follow are enough, where none defies; 6 are not
    for num, raised in ((7, []), (6, ["ignores_caption"])):
        scores = [1.0, 1.0] * num + [1.0, 0.0] * (24 - num)
        assert names(judge_alarms(replaced("wrong_caption", scores, per_group=2), [], USUAL)) == raised


def test_too_few_pairs_to_pass_raise_nothing():
    few = answers("wrong_caption", [1.0, 0.0] * 23, per_group=2)
    assert "ignores_caption" not in names(judge_alarms(few, [], USUAL))
    few = answers("wrong_caption", [1.0, 0.0] * 14, per_group=2)
    assert "ignores_caption" in names(judge_alarms(few, [], AlarmsConfig(min_skill=0.9)))


def test_position_is_more_flips_than_a_coin():
    flipping = [Answered(a.question_id, a.kind, a.group, 0.5, 1.0) for a in honest()]
    assert "answers_by_position" in names(judge_alarms(flipping, [], USUAL))
    half = [Answered(a.question_id, a.kind, a.group, a.score, float(i % 2)) for i, a in enumerate(honest())]
    assert judge_alarms(half, [], USUAL) == []


def test_a_coin_is_no_better_than_chance():
    coin = [Answered(a.question_id, a.kind, a.group, float(i % 2), 0.5) for i, a in enumerate(honest())]
    assert "no_better_than_chance" in names(judge_alarms(coin, [], USUAL))
    assert judge_alarms(coin[:30], [], USUAL) == []  # an honest judge of .8 might fail so few


def drifting(score: float, flip: float, confidence: float, num: int = 10) -> list[Answered]:
    return [Answered(f"q{i}", "blur", f"g{i}", score, flip, confidence) for i in range(num)]


def test_drift_is_a_rise_on_the_same_questions():
    before = drifting(1.0, 0.0, 0.9)
    assert drift_alarms(drifting(1.0, 0.1, 0.95), before, USUAL) == []  # no more than max_rise
    assert names(drift_alarms(drifting(1.0, 0.5, 0.9), before, USUAL)) == ["flip_rate_rose"]
    # surer than before while half of the answers are undecided: 0.9 − ½ against 0.9 − 1
    assert names(drift_alarms(drifting(0.5, 0.0, 0.9), before, USUAL)) == ["overconfidence_rose"]
    assert drift_alarms(drifting(1.0, 0.5, 0.9, num=7), before, USUAL) == []  # 1/128 is above α/2
    assert drift_alarms(drifting(1.0, 0.5, 0.9), [], USUAL) == []
    assert drift_alarms(before, drifting(0.5, 0.5, 0.9), USUAL) == []  # better is no alarm


def test_divergence_needs_the_one_up_and_the_other_down():
    prompts = [f"p{i}" for i in range(10)]
    up, down = [1.0] * 10, [-0.1] * 10
    [alarm] = divergence_alarms(
        up, {"motion": (down, 0.05), "smoothness": ([0.0] * 10, 0.02)}, prompts, USUAL
    )
    assert (alarm.name, alarm.threshold) == ("diverges_motion", -0.05)
    assert alarm.value == pytest.approx(-0.1) and "falls by 0.100, in 10 of 10 prompts" in alarm.reason
    assert divergence_alarms(up, {"motion": (down, 0.2)}, prompts, USUAL) == []
    assert divergence_alarms([0.5] * 10, {"motion": (down, 0.05)}, prompts, USUAL) == []
    some = [-0.1] * 6 + [0.1] * 4
    assert divergence_alarms(up, {"motion": (some, 0.0)}, prompts, USUAL) == []


def test_saturation_and_collapse():
    assert saturation_alarms(None, 0.0) == []
    assert names(saturation_alarms(79, 0.991)) == ["implicit_accuracy_saturated"]
    usual = {"fresh": 60, "real": 40}
    assert collapse_alarms(usual, {}, {}, USUAL) == []
    [alarm] = collapse_alarms({"fresh": 60}, {"guided": 5}, {}, USUAL)
    assert alarm.reason == "1.00 of 60 pairs are fresh, and guided gave 0"
    assert names(collapse_alarms({"fresh": 60}, {}, usual, USUAL)) == ["pairs_of_one_source"]
    assert collapse_alarms({"fresh": 60}, {"fresh": 8}, {"fresh": 9}, USUAL) == []  # there never was another
    assert collapse_alarms({"fresh": 95, "real": 5}, {}, {}, USUAL) == []
    assert collapse_alarms({}, {"fresh": 3, "real": 2}, usual, USUAL) == []


def test_an_alarm_that_there_is_not_is_named():
    with pytest.raises(ValueError, match="there is no alarm 'loves_cats'; choose from loves_frozen, "):
        AlarmsConfig(report_only=("loves_cats",))
