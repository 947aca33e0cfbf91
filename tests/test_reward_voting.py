import math
from dataclasses import replace

import pytest

from reward.question import Vote, mirrored
from reward.voting import fold, make_asks
from tests.reward_clips import question

Q = question()


def vote(swapped, ballot, motion, overall="tie"):
    answers = None if motion is None else {"motion": motion, "overall": overall}
    return Vote(Q.id, swapped, ballot, 0, answers, "", None, "empty" if motion is None else None)


def test_a_ballot_is_one_vote_in_each_order():
    asks = make_asks(Q, 3)
    assert [(a.swapped, a.ballot) for a in asks] == [(s, b) for b in range(3) for s in (False, True)]


def test_shares_are_in_the_questions_order():
    verdict = fold(
        Q, [vote(False, 0, "first"), vote(True, 0, "second"), vote(False, 1, "tie"), vote(True, 1, "tie")]
    )
    motion = verdict.dimensions["motion"]
    assert (motion.p_first, motion.p_second, motion.p_tie, motion.score) == (0.5, 0.0, 0.5, 0.75)
    assert motion.entropy == pytest.approx(math.log(2))
    assert (motion.flip_rate, motion.mode) == (0.0, "first" if motion.p_first > motion.p_tie else "tie")
    assert (verdict.num_votes, verdict.num_abstentions) == (4, 0)


def test_a_judge_that_always_says_first_says_nothing():
    motion = fold(Q, [vote(s, b, "first") for s in (False, True) for b in range(3)]).dimensions["motion"]
    assert (motion.score, motion.mode, motion.flip_rate) == (0.5, "tie", 1.0)


def test_abstentions_in_one_order_do_not_let_its_bias_through():
    votes = [vote(False, b, "first") for b in range(3)] + [vote(True, 0, "first"), vote(True, 1, None)]
    verdict = fold(Q, votes)
    assert verdict.dimensions["motion"].score == 0.5
    assert (verdict.num_votes, verdict.num_abstentions) == (4, 1)


def test_without_a_vote_there_is_no_opinion():
    motion = fold(Q, [vote(False, 0, None), vote(True, 0, None)]).dimensions["motion"]
    assert motion.score == pytest.approx(0.5)
    assert (motion.mode, motion.flip_rate) == (None, None)


def test_swapping_the_clips_mirrors_the_verdict():
    votes = [vote(False, 0, "first"), vote(True, 0, "tie"), vote(False, 1, "second"), vote(True, 1, "second")]
    mirror = [replace(v, answers=mirrored(v.answers)) for v in votes]
    one, other = (fold(Q, v).dimensions["motion"] for v in (votes, mirror))
    assert (one.p_first, one.p_second) == (other.p_second, other.p_first)
    assert one.score == pytest.approx(1 - other.score)


def test_a_vote_counts_once_and_for_its_own_question():
    with pytest.raises(ValueError, match="counted twice"):
        fold(Q, [vote(False, 0, "first"), vote(False, 0, "first")])
    with pytest.raises(ValueError, match="cannot count"):
        fold(Q, [replace(vote(False, 0, "first"), question_id="other")])


def test_ballots_can_be_asked_one_after_the_other():
    assert make_asks(Q, 2) + make_asks(Q, 3, start=2) == make_asks(Q, 3)
    assert make_asks(Q, 2, start=2) == []
