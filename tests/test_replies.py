"""Reading replies: recorded ones of every form, 300 malformed ones, and laws that hold for any."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reward.question import ANSWERS, parse_reply, write_reply
from reward.replies import FORMATS, parse_unified_reward
from tests.malformed_replies import BASES, GOOD, ONE_LINE, RETAKE, THOUGHT, UNIFIED_REWARD

DIMENSIONS = ("motion", "overall")
ALL = ("text_alignment", "motion", "visual_quality", "overall")


def filled(template: str, base: dict[str, str]) -> str:
    """The template with what the base says in place of its three capitals."""
    return re.sub(r"\b[RMO]\b", lambda found: base[found[0]], template)


CASES = [(filled(text, base), reason) for base in BASES for text, reason in RETAKE]


def test_there_are_enough_of_them():
    assert len(RETAKE) >= 70 and len(CASES) + len(UNIFIED_REWARD) >= 200
    assert {reason for _, reason in CASES} == {
        *("empty", "missing_tag", "duplicate_tag", "tag_order", "text_outside", "malformed_answer"),
        *("unknown_dimension", "duplicate_dimension", "missing_dimension", "unknown_word"),
    }


@pytest.mark.parametrize(("text", "reason"), CASES)
def test_a_malformed_reply_is_the_right_abstention(text, reason):
    reply = parse_reply(text, DIMENSIONS)
    assert (reply.answers, reply.abstention) == (None, reason)


@pytest.mark.parametrize("base", BASES)
def test_what_they_were_made_from_is_read(base):
    reply = parse_reply(filled(GOOD, base), DIMENSIONS)
    assert reply.answers == {"motion": base["M"], "overall": base["O"]} and reply.reasoning == base["R"]


@pytest.mark.parametrize(("text", "reason"), UNIFIED_REWARD)
def test_a_malformed_rating_is_the_right_abstention(text, reason):
    reply = parse_unified_reward(text, ALL)
    assert (reply.answers, reply.abstention) == (None, reason)


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        (THOUGHT, ("first", "tie", "second", "second")),
        (ONE_LINE, ("second", "first", "tie", "first")),
        (
            THOUGHT.replace("Video 2 is better", " Both videos are\nequally good "),
            ("first", "tie", "second", "tie"),
        ),
        # the answer is the model's, not ours to correct: 21 points against 21.5
        (THOUGHT.replace("Video 2 is better", "Video 1 is better"), ("first", "tie", "second", "first")),
    ],
)
def test_recorded_ratings(text, answers):
    wanted = dict(zip(ALL, answers, strict=True))
    assert parse_unified_reward(text, ALL).answers == wanted
    assert parse_unified_reward(f"\n{text} ", ("overall",)).answers == {"overall": wanted["overall"]}
    assert parse_unified_reward(text, ALL).reasoning.startswith("1. Semantic consistency:")


def test_overall_alone_needs_no_scores():
    text = "<think>It is sharper.</think><answer>Video 1 is better</answer>"
    assert parse_unified_reward(text, ("overall",)).answers == {"overall": "first"}
    # the sentences of the instructions' example are in the form that is asked for
    told = FORMATS["unified_reward"].instructions
    example = told[told.index("<think>") : told.index("</answer>") + len("</answer>")]
    assert parse_unified_reward(example, ALL).answers == dict.fromkeys(ALL, "first")


reasonings = st.text(max_size=80).filter(
    lambda text: not any(tag in text for tag in ("<reasoning>", "</reasoning>", "<answer>", "</answer>"))
)
names = st.lists(st.sampled_from(ALL), min_size=1, unique=True)


@given(reasonings, names, st.data())
def test_what_is_written_is_read(reasoning, dimensions, data):
    answers = {name: data.draw(st.sampled_from(ANSWERS)) for name in dimensions}
    reply = parse_reply(write_reply(reasoning, answers), dimensions)
    assert (reply.answers, reply.abstention, reply.reasoning) == (answers, None, reasoning.strip())


pieces = st.sampled_from(
    [
        *("<reasoning>", "</reasoning>", "<answer>", "</answer>", "<think>", "</think>", " ", "\n", ":", "x"),
        *(
            "motion:",
            "overall:",
            "first",
            "second",
            "tie",
            "Video 1 is better",
            "Both videos are equally good",
        ),
        *("1. Temporal coherence:", "Video 1 (3/10)", "Video 2 (4/10)", "motion: first overall: tie"),
    ]
)


@example("<reasoning>x</reasoning>\n<answer>overall: tie motion: first</answer>")
@example(
    "<think>1. Temporal coherence:Video 1 (3/10)Video 2 (4/10)</think><answer>Video 1 is better</answer>"
)
@given(st.lists(pieces, max_size=12).map("".join))
def test_only_the_grammar_is_read(text):
    ours = parse_reply(text, DIMENSIONS)
    if ours.answers is not None:
        # the two ends of the grammar agree: written again without its free white space, it is the same
        assert set(ours.answers) == set(DIMENSIONS) and set(ours.answers.values()) <= set(ANSWERS)
        again = write_reply(ours.reasoning, ours.answers)
        squeezed = "".join(text.split())
        assert squeezed in (
            "".join(again.split()),
            "".join(_other_order(ours.reasoning, ours.answers).split()),
        )
    theirs = parse_unified_reward(text, DIMENSIONS)
    if theirs.answers is not None:
        head, _, tail = text.strip().partition("</think>")
        assert head.startswith("<think>") and tail.strip().startswith("<answer>")
        assert text.count("Video 1 is better") + text.count("Both videos are equally good") == 1
    for reply in (ours, theirs):
        assert (reply.answers is None) != (reply.abstention is None)


def _other_order(reasoning: str, answers: dict) -> str:
    return write_reply(reasoning, dict(reversed(answers.items())))
