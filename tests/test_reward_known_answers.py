from collections import Counter

import numpy as np
import pytest

from reward.config import CORRUPTIONS, DIMENSIONS, KnownAnswersConfig
from reward.corruptions import FLAWS, GRADES, corrupt, estimate_background
from reward.known_answers import make_known_answers
from reward.sides import CorruptedReader, SegmentReader, Side, compare
from tests.reward_clips import BlockReader, sources

KNOWN = make_known_answers(sources(), 400, seed=3, segments=3)


def test_the_configured_corruptions_are_those_that_exist():
    assert tuple(FLAWS) == CORRUPTIONS
    with pytest.raises(ValueError, match="frezze"):
        KnownAnswersConfig(corruptions=("frezze",))


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "wrong_caption"])
@pytest.mark.parametrize("grade", GRADES)
def test_a_corruption_keeps_shape_and_changes_its_span_alone(name, grade):
    clip, other = BlockReader("red")().pixels, BlockReader("blue", size=20)().pixels
    first, second = (corrupt(name, clip, (4, 9), grade, np.random.default_rng(1), other) for _ in range(2))
    assert first.shape == clip.shape and first.dtype == np.uint8
    assert np.array_equal(first, second)
    assert np.array_equal(first[:4], clip[:4]) and np.array_equal(first[9:], clip[9:])
    assert not np.array_equal(first, clip)


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name not in ("wrong_caption", "vanish")])
def test_two_frames_are_enough(name):
    clip = BlockReader("red", num_frames=2, speed=6)().pixels
    assert not np.array_equal(corrupt(name, clip, (0, 2), 3, np.random.default_rng(0), 255 - clip), clip)


def test_the_background_is_the_scene_without_the_block():
    background = estimate_background(BlockReader("red")().pixels)
    assert background is not None
    assert np.abs(background.astype(int) - 24).max() <= 2
    assert estimate_background(BlockReader("red", speed=0)().pixels) is None


def test_a_frozen_clip_stands_still_from_some_frame_on():
    frozen = CorruptedReader(BlockReader("red"), "freeze", 3, 0)().pixels
    assert np.all(frozen[2:] == frozen[1])


def test_dropped_frames_leave_one_jump_and_the_length():
    """Frame t of this clip is grey level 10 t, so levels say which frames are left."""
    clip = (np.arange(10, dtype=np.uint8) * 10)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    for grade, gone in ((1, 2), (2, 4), (3, 5)):
        levels = corrupt("drop", clip, (0, 10), grade, np.random.default_rng(grade))[:, 0, 0, 0] // 10
        steps = np.diff(levels.astype(int))
        assert len(levels) == 10 and levels[0] == 0 and levels[-1] == 9
        assert sorted(set(steps)) == [0, 1, gone + 1] and (steps == gone + 1).sum() == 1
        assert len(set(levels)) == 10 - gone
    three = corrupt("drop", clip[:3], (0, 3), 3, np.random.default_rng(0))[:, 0, 0, 0]
    assert three.tolist() == [0, 0, 20]


def test_drifting_light_grows_to_its_grade_and_leaves_green_alone():
    clip = np.full((4, 4, 4, 3), 100, np.uint8)
    for grade, reach in ((1, 0.25), (2, 0.45), (3, 0.7)):
        red, green, blue = corrupt("drift", clip, (0, 4), grade, np.random.default_rng(2))[:, 0, 0].T.astype(
            int
        )
        sign = 1 if red[-1] > 100 else -1
        # 100·g + 60·g more with gain g, a quarter of the reach a frame
        expected = np.array([160 * reach * sign * t / 4 for t in (1, 2, 3, 4)])
        assert green.tolist() == [100] * 4
        assert np.abs(red - np.clip(100 + expected, 0, 255)).max() <= 1
        assert np.abs(blue - np.clip(100 - expected, 0, 255)).max() <= 1
    signs = {corrupt("drift", clip, (0, 4), 3, np.random.default_rng(s))[-1, 0, 0, 0] > 100 for s in range(8)}
    assert signs == {True, False}  # both warm and cold: neither gives the answer away


def test_a_segment_comes_with_the_frame_before_it():
    reader = SegmentReader(BlockReader("red"), 4, 8)
    assert np.array_equal(reader().pixels, BlockReader("red")().pixels[3:8])
    assert len(SegmentReader(BlockReader("red"), 0, 4)().pixels) == 4


def test_the_same_seed_gives_the_same_questions():
    again = make_known_answers(sources(), 400, seed=3, segments=3)
    assert again == KNOWN
    assert make_known_answers(sources(), 20, seed=4) != KNOWN[:20]
    assert make_known_answers(sources(), 100, seed=3, segments=3) == KNOWN[:100]


def test_neither_side_wins_by_its_place():
    for dimension in DIMENSIONS:
        counts = Counter(known.answers[dimension] for known in KNOWN)
        decided = counts["first"] + counts["second"]
        assert counts["tie"] > 0
        assert abs(counts["first"] - decided / 2) < 2.5 * np.sqrt(decided / 4)  # 2.5 standard errors


def test_answers_agree_with_what_was_applied():
    for known in KNOWN:
        first, second = known.reasoning.split(" second: ")
        if known.corruption == "tie_same":
            assert known.question.first.key == known.question.second.key
        if known.corruption.startswith("tie"):
            assert set(known.answers.values()) == {"tie"} and known.grade == 0
        elif known.corruption == "wrong_caption" and "steady" in first and "steady" in second:
            right = known.question.prompt in first
            assert known.answers["text_alignment"] == ("first" if right else "second")
            assert known.answers["motion"] == known.answers["visual_quality"] == "tie"
        elif known.corruption in ("blur", "noise") and "steady" in known.reasoning:
            better = "first" if "steady" in first else "second"
            assert known.answers["visual_quality"] == known.answers["overall"] == better
            assert known.answers["motion"] == "tie"


def test_most_flaws_are_asked_about_and_show():
    counts = Counter(known.corruption for known in KNOWN)
    assert {name for name in CORRUPTIONS if counts[name]} == set(CORRUPTIONS)
    for known in KNOWN[:60]:
        first, second = known.question.first().pixels, known.question.second().pixels
        same = first.shape == second.shape and np.array_equal(first, second)
        assert same <= known.corruption.startswith("tie")


def test_a_segment_question_shows_segments():
    asked = [known for known in KNOWN if known.question.segment is not None]
    assert 60 < len(asked) < 140
    for known in asked[:20]:
        assert len(known.question.first().pixels) == (4 if known.question.segment == 0 else 5)


def test_ambiguous_pairs_are_not_asked():
    source = sources()[0]
    frozen, blurred = Side(source, flaw="freeze", grade=3), Side(source, flaw="blur", grade=3)
    assert compare(frozen, blurred, ("overall",)) is None
    assert compare(frozen, blurred, ("motion", "visual_quality")) == {
        "motion": "second",
        "visual_quality": "first",
    }
    slightly, badly = Side(source, flaw="jitter", grade=1), Side(source, flaw="jitter", grade=3)
    assert compare(slightly, badly, ("overall",)) == {"overall": "first"}
    assert slightly.describe(badly) == "a red box moves right, less shakes."
    assert (
        compare(Side(source, flaw="freeze", grade=1), Side(source, flaw="jitter", grade=2), ("motion",))
        is None
    )


def test_what_cannot_be_asked_is_an_error():
    still = sources(speed=0)[:1]
    with pytest.raises(ValueError, match="add clips that move"):
        make_known_answers(still, 5, 0, corruptions=["freeze"], tie_share=0.0)
    with pytest.raises(ValueError, match="at least one source"):
        make_known_answers([], 5, 0)
    with pytest.raises(ValueError, match="beauty"):
        make_known_answers(sources(), 5, 0, dimensions=("beauty",))
    with pytest.raises(ValueError, match="frezze"):
        make_known_answers(sources(), 5, 0, corruptions=("frezze",))
