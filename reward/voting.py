"""Ask in both orders, several times, and fold the votes into one verdict."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from reward.question import ANSWERS, Answer, Ask, Question, Vote


@dataclass(frozen=True)
class DimensionVerdict:
    """What the votes say in one dimension, in the question's order.

    The three shares add up to 1; `score` = p_first + p_tie / 2 is the mean of the vote distribution (above
    0.5: the first clip is better). `mode` is the most frequent answer, a draw between first and second is
    a tie. `entropy` in nats. `flip_rate` is the share of ballots whose two orders contradict each other
    (one says first, the other second); None without a complete ballot. Without any vote the shares are a
    third each and `mode` is None. `certainty` and `calibrated_for` are filled in by reward.certainty.
    """

    p_first: float
    p_second: float
    p_tie: float
    score: float
    mode: Answer | None
    entropy: float
    flip_rate: float | None
    certainty: float | None = None
    calibrated_for: str | None = None


@dataclass(frozen=True)
class Verdict:
    """The votes of one question, folded. `num_votes` counts answers, abstentions are counted apart.

    Of a question that stopped early (reward/stopping.py) the mode may be taken as it is, the score not: the
    votes stop where they look one-sided, so it lies further from 0.5 than that of all ballots would. Scores
    to be averaged need a fixed number of ballots, certainties a calibrator fitted under the same rule.
    """

    question_id: str
    kind: str
    segment: int | None
    group: str
    dimensions: dict[str, DimensionVerdict]
    num_votes: int
    num_abstentions: int


def make_asks(question: Question, num_ballots: int, start: int = 0) -> list[Ask]:
    """The 2 · (`num_ballots` − `start`) asks of ballots `start` to `num_ballots`; one vote in each order."""
    ballots = range(start, num_ballots)
    return [Ask(question, swapped, ballot) for ballot in ballots for swapped in (False, True)]


def fold(question: Question, votes: Sequence[Vote]) -> Verdict:
    """The verdict of `votes`. Raises ValueError for votes that are not the question's own or come twice."""
    seen: set[tuple[bool, int]] = set()
    for vote in votes:
        if vote.question_id != question.id:
            raise ValueError(f"a vote on {vote.question_id!r} cannot count for question {question.id!r}")
        if (vote.swapped, vote.ballot) in seen:
            raise ValueError(
                f"question {question.id!r}: ballot {vote.ballot} was counted twice; drop one of its votes"
            )
        seen.add((vote.swapped, vote.ballot))
    num_votes = sum(vote.answers is not None for vote in votes)
    return Verdict(
        question_id=question.id,
        kind=question.kind,
        segment=question.segment,
        group=question.group,
        dimensions={dimension: _fold_dimension(dimension, votes) for dimension in question.dimensions},
        num_votes=num_votes,
        num_abstentions=len(votes) - num_votes,
    )


def _fold_dimension(dimension: str, votes: Sequence[Vote]) -> DimensionVerdict:
    by_order: dict[bool, list[Answer]] = defaultdict(list)
    by_ballot: dict[int, list[Answer]] = defaultdict(list)
    for vote in votes:
        answers = vote.unswapped()
        if answers is not None:
            by_order[vote.swapped].append(answers[dimension])
            by_ballot[vote.ballot].append(answers[dimension])
    shares = _shares(list(by_order.values()))
    first, second, tie = (shares[answer] for answer in ANSWERS)
    ballots = [pair for pair in by_ballot.values() if len(pair) == 2]
    return DimensionVerdict(
        p_first=first,
        p_second=second,
        p_tie=tie,
        score=first + tie / 2,
        mode=_mode(shares) if by_order else None,
        entropy=-sum(p * math.log(p) for p in shares.values() if p > 0),
        flip_rate=sum(set(pair) == {"first", "second"} for pair in ballots) / len(ballots)
        if ballots
        else None,
    )


def _shares(orders: list[list[Answer]]) -> dict[Answer, float]:
    """The mean of the two orders' shares: abstentions in one order must not let its position bias through."""
    if not orders:
        return dict.fromkeys(ANSWERS, 1 / 3)
    return {a: sum(order.count(a) / len(order) for order in orders) / len(orders) for a in ANSWERS}


def _mode(shares: dict[Answer, float]) -> Answer:
    most = max(shares.values())
    best: list[Answer] = [answer for answer in ANSWERS if shares[answer] > most - 1e-9]
    return best[0] if len(best) == 1 else "tie"
