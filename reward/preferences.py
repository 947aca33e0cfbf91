"""Rows that a judge learns from: replies to imitate, and right reasoning paths against wrong ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

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
    """Two replies to the same message; `weight` multiplies the row's DPO loss.

    `source` says by what the chosen one is right: the judge's own vote, the rule that a real clip is better
    than a take, or a known answer.
    """

    ask: Ask
    chosen: str
    rejected: str
    weight: float
    source: Literal["own", "real", "known"] = "own"


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
    source: Literal["own", "real"] = "own",
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
        right, wrong = _right_and_wrong(votes, swapped, modes, dimension)
        for good, bad in zip(right, wrong, strict=False):
            ask = Ask(question, swapped, good.ballot)
            rows.append(PreferenceRow(ask, _reply(good), _reply(bad), weight, source))
    return rows[:max_rows]


def known_preference_rows(
    known: KnownAnswer, votes: Sequence[Vote], *, dimension: str = "overall", max_rows: int = 2
) -> list[PreferenceRow]:
    """Right against wrong reasoning paths of one question whose answer is known, whatever the vote says.

    Where no path of the question's own order is right, the reply written from the corruption stands in for
    it; in the other order its words would name the wrong sides. Returns no row where no path is wrong.
    """
    question = known.question
    dimension = dimension if dimension in known.answers else question.dimensions[-1]
    rows: list[PreferenceRow] = []
    for swapped in (False, True):
        right, wrong = _right_and_wrong(votes, swapped, known.answers, dimension)
        chosen = [(vote.ballot, _reply(vote)) for vote in right]
        if not chosen and not swapped:
            chosen = [(0, write_reply(known.reasoning, known.answers))]
        for (ballot, good), bad in zip(chosen, wrong, strict=False):
            rows.append(PreferenceRow(Ask(question, swapped, ballot), good, _reply(bad), 1.0, "known"))
    return rows[:max_rows]


def mix_sources(
    rows: Sequence[PreferenceRow], known_share: float, real_share: float | None
) -> tuple[list[PreferenceRow], dict[str, float]]:
    """The first rows of each source in their shares, and what to report where there is more than one source.

    Rows by the judge's own vote all stay. Real against take is at most `real_share` of the result, known
    answers are `known_share` of it, fewer where there are too few.
    """
    of = {source: [row for row in rows if row.source == source] for source in ("own", "real", "known")}
    share = real_share or 0.0
    num_own = len(of["own"])
    most_real = _floor(num_own * share / (1 - known_share - share))
    num_known = round((num_own + min(most_real, len(of["real"]))) * known_share / (1 - known_share))
    num_known = min(num_known, len(of["known"]))
    num_real = min(most_real, _floor((num_own + num_known) * share / (1 - share)), len(of["real"]))
    mixed = [*of["own"], *of["real"][:num_real], *of["known"][:num_known]]
    if len(of["own"]) == len(rows):
        return mixed, {}
    return mixed, {"srpo_rows_own": num_own, "srpo_rows_real": num_real, "srpo_rows_known": num_known}


def _floor(x: float) -> int:
    return int(x + 1e-9)  # a share such as 0.1 is not exact


def _right_and_wrong(
    votes: Sequence[Vote], swapped: bool, truth: Mapping[str, Answer | None], dimension: str
) -> tuple[list[Vote], list[Vote]]:
    """One order's answered votes, right and wrong by `truth` in `dimension`; the best right ones lead."""
    answered = [(v, a) for v in votes if v.swapped == swapped and (a := v.unswapped()) is not None]
    right = [v for v, a in answered if a[dimension] == truth[dimension]]
    right.sort(key=lambda v: (-_agreement(v.unswapped() or {}, truth), v.ballot))
    return right, [v for v, a in answered if a[dimension] != truth[dimension]]


def _agreement(answers: Mapping[str, Answer], truth: Mapping[str, Answer | None]) -> int:
    return sum(answers[name] == truth[name] for name in answers)


def _reply(vote: Vote) -> str:
    assert vote.answers is not None
    return write_reply(vote.reasoning, vote.answers)


def weigh_by_certainty(
    rows: Sequence[PreferenceRow], r: np.ndarray, tau: float | None, min_pce: float
) -> tuple[list[PreferenceRow], dict[str, float]]:
    """The rows with PCE > `min_pce`, their weights multiplied by it, and what to report.

    `r` [num_rows] is the reward of the chosen reply, R = (log π_now − log π_parent) / tokens, with π_now the
    judge after this round's supervised step. PCE = σ((R − Q) / τ), Q = mean R; `tau` None = the standard
    deviation of R. Where all R are equal (both judges are, or there is but one row) PCE would be ½ for all
    and let nothing pass. It tells nothing then: it is 1 instead, and the report has `pce_uninformative` = 1.
    """
    if len(rows) == 0 or np.ptp(r) < 1e-6:
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
