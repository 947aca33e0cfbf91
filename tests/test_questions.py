"""Questions about stored clips: blind, stable, and about the frames that they say."""

from pathlib import Path

import numpy as np

from generator.clips import write_clip
from loop.steps.questions import StoredClip, make_question, segment_frames
from reward.question import Ask, build_message
from reward.voting import make_asks

DIMENSIONS = ("motion", "overall")


def question(one: str, other: str, scope="0/1/label", segment=None):
    clips = StoredClip(one, Path(f"{one}.mp4")), StoredClip(other, Path(f"{other}.mp4"))
    return make_question("take_real", "a text", clips, DIMENSIONS, scope=scope, group="g", segment=segment)


def test_the_order_of_the_arguments_changes_nothing():
    assert question("take", "anchor") == question("anchor", "take")


def test_real_clips_have_no_usual_place():
    first = sum(question(f"take-{i}", f"anchor-{i}").first.clip_id.startswith("anchor") for i in range(400))
    assert 160 < first < 240


def test_seeds_differ_between_campaigns_rounds_segments_and_ballots():
    questions = [
        question("a", "b"),
        question("a", "b", "1/1/label"),
        question("a", "b", "0/2/label"),
        question("a", "b", segment=1),
    ]
    seeds = {ask.seed for q in questions for ask in make_asks(q, 3)}
    assert len(seeds) == 4 * 3 * 2


def test_a_message_does_not_tell_which_clip_is_real():
    """Its text depends on the prompt and the frames' times alone: no file names, ids or kinds."""
    times = [0.0, 0.125, 0.25]
    for q in (question("take-secret", "anchor-secret"), question("other", "another")):
        for swapped in (False, True):
            content = build_message(Ask(q, swapped, 0), "compare", (times, times), time_stamps=True)
            text = " ".join(part["text"] for part in content if part["type"] == "text")
            assert text == "compare\nprompt: a text\n first:\n 0.0s 0.1s 0.2s \n second:\n 0.0s 0.1s 0.2s \n"


def test_segments_own_their_frames_and_show_the_one_before():
    assert [segment_frames(s, 4) for s in range(4)] == [(0, 5), (4, 9), (8, 13), (12, 17)]


def test_a_stored_clip_reads_its_span(tmp_path):
    frames = np.repeat(np.arange(0, 240, 15, dtype=np.uint8), 32 * 32 * 3).reshape(16, 32, 32, 3)
    write_clip(tmp_path / "c.mp4", frames, 8)
    whole, part = StoredClip("c", tmp_path / "c.mp4"), StoredClip("c", tmp_path / "c.mp4", 4, 9)
    assert whole().fps == part().fps == 8
    assert np.array_equal(part().pixels, whole().pixels[4:9])
    assert whole.key != part.key
