"""Rows that a judge learns from: replies to imitate, and right reasoning paths against wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from reward.certainty import pce
from reward.known_answers import KnownAnswer
from reward.question import Answer, Ask, Question, Vote, write_reply
from reward.voting import Verdict


@dataclass(frozen=True)
class SftRow:
    """A reply to imitate, in the order that `ask` shows."""

    ask: Ask
    reply: str


@dataclass(frozen=True)
class PreferenceRow:
    """Two replies to the same message; `weight` multiplies the row's DPO loss."""

    ask: Ask
    chosen: str
    rejected: str
    weight: float


def known_answer_rows(known: Sequence[KnownAnswer]) -> list[SftRow]:
    """One row for each known answer, in its question's own order (which is balanced already)."""
    return [SftRow(Ask(k.question, False, 0), write_reply(k.reasoning, k.answers)) for k in known]


def make_preference_rows(
    question: Question,
    votes: Sequence[Vote],
    verdict: Verdict,
    weight: float,
    *,
    dimension: str = "overall",
    max_rows: int = 2,
) -> list[PreferenceRow]:
    """Right against wrong reasoning paths of one confident question (SRPO; Dual-IPO, section "judge side").

    Right is a vote that agrees with the verdict's mode in `dimension`, wrong one that does not; both were
    written for the same order, so that they answer the same message. The right path that agrees with the
    modes of most dimensions comes first. Abstentions are not used: their text is not a reply to learn from.
    `dimension` falls back to the question's last one. Returns no row where the votes are unanimous.
    """
    dimension = dimension if dimension in verdict.dimensions else question.dimensions[-1]
    modes = {name: found.mode for name, found in verdict.dimensions.items()}
    rows: list[PreferenceRow] = []
    for swapped in (False, True):
        answered = [(v, a) for v in votes if v.swapped == swapped and (a := v.unswapped()) is not None]
        right = [v for v, a in answered if a[dimension] == modes[dimension]]
        right.sort(key=lambda v: (-_agreement(v.unswapped() or {}, modes), v.ballot))
        wrong = [v for v, a in answered if a[dimension] != modes[dimension]]
        for good, bad in zip(right, wrong, strict=False):
            rows.append(PreferenceRow(Ask(question, swapped, good.ballot), _reply(good), _reply(bad), weight))
    return rows[:max_rows]


def _agreement(answers: dict[str, Answer], modes: dict[str, Answer | None]) -> int:
    return sum(answers[name] == modes[name] for name in answers)


def _reply(vote: Vote) -> str:
    assert vote.answers is not None
    return write_reply(vote.reasoning, vote.answers)


def weigh_by_certainty(
    rows: Sequence[PreferenceRow], r: np.ndarray, tau: float | None, min_pce: float
) -> tuple[list[PreferenceRow], dict[str, float]]:
    """The rows with PCE > `min_pce`, their weights multiplied by it, and what to report.

    `r` [num_rows] is the reward of the chosen reply, R = (log π_now − log π_parent) / tokens, with π_now the
    judge after this round's supervised step. PCE = σ((R − Q) / τ), Q = mean R; `tau` None = the standard
    deviation of R. Where both judges are equal R = Q = 0 would let nothing pass, so PCE is 1 instead and the
    report says `pce_uninformative` = 1.
    """
    if len(rows) == 0 or np.abs(r).max() < 1e-6:
        return list(rows), {"pce_uninformative": 1.0, "pce_kept": float(len(rows)), "pce_dropped": 0.0}
    certainty = pce(r, float(r.mean()), tau or max(float(r.std()), 1e-6))
    kept = [
        replace(row, weight=row.weight * float(p))
        for row, p in zip(rows, certainty, strict=True)
        if p > min_pce
    ]
    report = {
        "pce_uninformative": 0.0,
        "pce_kept": float(len(kept)),
        "pce_dropped": float(len(rows) - len(kept)),
        "pce_q": float(r.mean()),
        "pce_r_std": float(r.std()),
    }
    return kept, report
