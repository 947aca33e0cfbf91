"""When a question has been asked often enough: a sequential test, decided ballot by ballot.

A question stops after a complete ballot where either
- the trailing side is the better one with a probability of at most δ (`stop_error`), the votes so far name
  the leading side, and both orders have answered; or
- no answers of the remaining ballots can change the verdict's mode, be it first, second or tie.

Counts are arrays [..., 2, 3]: answers in the question's own order, by order shown (as it is, swapped) and by
answer (first, second, tie). Abstentions are not counted.

The mode stands for the whole verdict: first or second implies that the score is on the same side of 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import betainc

from reward.config import VotingConfig
from reward.question import ANSWERS, Ask, Question, Vote
from reward.voting import make_asks

_TIE = ANSWERS.index("tie")
_SLACK = 1e-9  # shares within it are equal, as in reward.voting


def count_answers(votes: Sequence[Vote], dimension: str) -> np.ndarray:
    """Counts [2, 3] of one question's votes in one dimension."""
    counts = np.zeros((2, len(ANSWERS)))
    for vote in votes:
        answers = vote.unswapped()
        if answers is not None:
            counts[int(vote.swapped), ANSWERS.index(answers[dimension])] += 1
    return counts


def modes(counts: np.ndarray) -> np.ndarray:
    """The mode that `fold` gives counts [..., 2, 3], as an index into ANSWERS; a tie without any vote."""
    shares = _shares(counts)
    best = shares > shares.max(-1, keepdims=True) - _SLACK
    return np.where(best.sum(-1) == 1, shares.argmax(-1), _TIE)


def probability_first(counts: np.ndarray, correlation: float = 0.0) -> np.ndarray:
    """P(θ > ½), where θ is the probability that a vote goes to the first clip; shape [...].

    θ has the posterior Beta(1 + n_eff · score, 1 + n_eff · (1 − score)): ties count half to each side, and
    the score is the mean of both orders' scores, so that abstentions in one order do not let its position
    bias through. The prior is Beta(1, 1): every judge is as likely as any other, reliable or not. Jeffreys'
    Beta(½, ½) expects votes to be nearly unanimous, and calls two equal votes 92 % sure, the uniform prior
    88 %. n votes that share a part ρ (`correlation`) of their variance say as much about the mean as
    n_eff = n / (1 + (n−1)ρ) independent ones (the design effect of cluster samples; Kish 1965).
    """
    shares = _shares(counts)
    n = counts.sum((-2, -1))
    effective = n / (1 + np.maximum(n - 1, 0) * correlation)
    first, second = (shares[..., side] + shares[..., _TIE] / 2 for side in (0, 1))
    return betainc(1 + effective * second, 1 + effective * first, 0.5)


def can_change(counts: np.ndarray, num_remaining: int) -> np.ndarray:
    """Whether some answers, or abstentions, of `num_remaining` further ballots change the mode; bool [...].

    Three completions decide it, all remaining votes unanimous for one answer: each further vote for an answer
    raises its share in its order at least as far above every other answer's as any other vote or an
    abstention would (d/dk of (x + k − y) / (n + k) is never negative as x − y ≤ n).
    """
    now = modes(counts)
    unanimous = num_remaining * np.eye(len(ANSWERS))
    return np.any([modes(counts + answers) != now for answers in unanimous], axis=0)


def has_stopped(counts: np.ndarray, num_ballots: int, voting: VotingConfig) -> np.ndarray:
    """Whether questions with these counts stop after their first `num_ballots` ballots; bool [...]."""
    if num_ballots < voting.least_ballots:
        return np.zeros(counts.shape[:-2], dtype=bool)
    if num_ballots >= voting.num_ballots:
        return np.ones(counts.shape[:-2], dtype=bool)
    p = probability_first(counts, voting.vote_correlation)
    # a side that leads while most votes say tie would be a verdict of tie, which p says nothing about
    named = modes(counts) == np.where(p > 0.5, 0, 1)
    both_orders = (counts.sum(-1) > 0).all(-1)
    sure = (np.minimum(p, 1 - p) <= voting.stop_error + _SLACK) & named & both_orders
    return sure | ~can_change(counts, voting.num_ballots - num_ballots)


def vote_in_waves(
    questions: Sequence[Question],
    voting: VotingConfig,
    vote: Callable[[Sequence[Ask]], list[Vote]],
    dimension: str = "overall",
) -> list[Vote]:
    """Votes on `questions`, in their order: first `min_ballots` of all, then one more of those still open.

    `vote` answers a wave of asks, in their order. A vote's seed depends on question, order and ballot alone,
    so a question that never stops early has the votes of make_asks(question, voting.num_ballots).
    Raises ValueError where early stops are asked for and a question lacks `dimension`.
    """
    if voting.stops_early:
        for q in questions:
            if dimension not in q.dimensions:
                raise ValueError(
                    f"question {q.id!r} does not ask for {dimension!r}, by which voting stops; add it to "
                    "judge.dimensions, or leave min_ballots out"
                )
    votes: list[list[Vote]] = [[] for _ in questions]
    is_open = list(range(len(questions)))
    start, stop = 0, voting.least_ballots
    while is_open:
        asks = [(i, ask) for i in is_open for ask in make_asks(questions[i], stop, start)]
        for (i, _), answer in zip(asks, vote([ask for _, ask in asks]), strict=True):
            votes[i].append(answer)
        if stop == voting.num_ballots:
            break
        counts = np.stack([count_answers(votes[i], dimension) for i in is_open])
        stopped = has_stopped(counts, stop, voting)
        is_open = [i for i, done in zip(is_open, stopped, strict=True) if not done]
        start, stop = stop, stop + 1
    return [one for of_question in votes for one in of_question]


def wald_bound(accuracy: float, error: float) -> float:
    """The least expected number of independent votes of a test that is wrong at most `error` of the time.

    The hypotheses: a vote is for the first clip with probability p (`accuracy`), or with 1 − p. No sequential
    test, however clever, needs fewer votes on average than
    (1 − 2ε) · ln((1 − ε) / ε) / ((2p − 1) · ln(p / (1 − p))), the denominator being the Kullback–Leibler
    divergence of a vote between the two (Wald, Annals of Mathematical Statistics 16, 1945, section 4.7).
    Raises ValueError unless ½ < p < 1 and 0 < ε < ½.
    """
    if not 0.5 < accuracy < 1:
        raise ValueError(f"accuracy must lie between 0.5 and 1, exclusively, got {accuracy}")
    if not 0 < error < 0.5:
        raise ValueError(f"error must lie between 0 and 0.5, exclusively, got {error}")
    divergence = (2 * accuracy - 1) * math.log(accuracy / (1 - accuracy))
    return (1 - 2 * error) * math.log((1 - error) / error) / divergence


def _shares(counts: np.ndarray) -> np.ndarray:
    """Shares [..., 3]: the mean over the orders that have answers, as in reward.voting; else a third each."""
    n = counts.sum(-1, keepdims=True)
    orders = (n > 0).sum(-2)
    shares = (counts / np.maximum(n, 1)).sum(-2) / np.maximum(orders, 1)
    return np.where(orders > 0, shares, 1 / len(ANSWERS))
