"""What SRPO learns from: right against wrong reasoning paths, by vote, by rule, by known answer."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from typing import Any

import numpy as np

from loop.held_out import training_anchors
from loop.stages import StageContext, derive_seed
from loop.steps.common import read_table, verdicts_of
from loop.steps.judge_gate import known_answers
from loop.steps.judging import ask, clip_id, open_judge, write_votes
from loop.steps.label import plan_questions
from reward.certainty import apply, least_certainties, why_not_confident
from reward.config import CertaintyConfig, VotingConfig
from reward.preferences import PreferenceRow, known_preference_rows, make_preference_rows
from reward.question import Question, Vote
from reward.voting import Verdict, fold

_ASKED_AT_ONCE = 64  # known questions, until there are rows enough


def own_votes(ctx: StageContext) -> tuple[list[PreferenceRow], dict[str, int]]:
    """Right against wrong reasoning paths of the previous round's confident verdicts, shuffled (SRPO).

    With `train_judge.real_share` verdicts of takes against real clips are no pseudo-labels: those that prefer
    the real clip, however surely, are rows of the source "real", and the others are dropped.
    With `train_judge.own_questions` the judge that cast the votes answers some of the questions again, often
    enough for right and wrong paths to the same message. Also returns how many questions gave no row, by
    reason.
    """
    asks_again = ctx.config.train_judge.own_questions is not None
    planned = _drawn_questions(ctx) if asks_again else plan_questions(ctx, ctx.round - 1)
    questions = {q.id: q for q in planned}
    votes = _ask_again(ctx, list(questions.values())) if asks_again else _votes(ctx)
    verdicts = (
        {name: apply(fold(questions[name], cast), {}) for name, cast in votes.items()}
        if asks_again
        else verdicts_of(read_table(ctx.inputs["label"] / "verdicts.parquet"))
    )
    limits = _limits(ctx)
    least = least_certainties(verdicts.values(), "overall", limits)
    anchors = {row["anchor_id"] for row in training_anchors(ctx)}
    by_rule = ctx.config.train_judge.real_share is not None
    rows: list[PreferenceRow] = []
    drops: dict[str, int] = defaultdict(int)
    for question_id, verdict in verdicts.items():
        question = questions.get(question_id)
        if question is None:  # a branch that labels otherwise than the round it came from
            drops["asked_under_other_settings"] += 1
            continue
        is_real = by_rule and verdict.kind == "take_real"
        if is_real:
            reason = _why_not_real(question, verdict, anchors)
        else:
            reason = why_not_confident(verdict, "overall", limits, least)
        most = ctx.config.train_judge.pairs_per_question
        made = [] if reason else make_preference_rows(
            question, votes[question_id], verdict, 1.0, max_rows=most, source="real" if is_real else "own"
        )  # fmt: skip
        if not made:
            drops[reason or "unanimous"] += 1
        rows += made
    order = np.random.default_rng(ctx.seed).permutation(len(rows))
    return [rows[i] for i in order], dict(sorted(drops.items()))


def _limits(ctx: StageContext) -> CertaintyConfig:
    """What a verdict must clear to tell right paths from wrong ones; dissent is what it is asked for."""
    settings = ctx.config.train_judge
    if settings.own_questions is None:
        return ctx.config.certainty
    return CertaintyConfig(min_margin=settings.own_min_margin, min_votes=settings.own_ballots)


def _drawn_questions(ctx: StageContext) -> list[Question]:
    """Those of the previous round that are asked again."""
    num = sum(1 for _ in plan_questions(ctx, ctx.round - 1))
    order = np.random.default_rng(derive_seed(ctx.seed, "own")).permutation(num)
    drawn = set(order[: ctx.config.train_judge.own_questions].tolist())
    return [q for i, q in enumerate(plan_questions(ctx, ctx.round - 1)) if i in drawn]


def _ask_again(ctx: StageContext, some: list[Question]) -> dict[str, list[Vote]]:
    """Votes on questions, by question; ballot 0 of each is the one that label cast."""
    settings = ctx.config.train_judge
    judge = open_judge(ctx, ctx.inputs.get("judge_parent"))
    try:
        cast = ask(ctx, judge, some, VotingConfig(num_ballots=settings.own_ballots), "own")
    finally:
        judge.close()
    write_votes(ctx.out / "own_votes.parquet", some, cast)
    votes: dict[str, list[Vote]] = {q.id: [] for q in some}
    for vote in cast:
        votes[vote.question_id].append(vote)
    return votes


def _why_not_real(question: Question, verdict: Verdict, anchors: set[str]) -> str | None:
    real = "first" if clip_id(question.first) in anchors else "second"
    return None if verdict.dimensions["overall"].mode == real else "real_clip_not_preferred"


def _votes(ctx: StageContext) -> dict[str, list[Vote]]:
    votes: dict[str, list[Vote]] = defaultdict(list)
    for row in read_table(ctx.inputs["label"] / "votes.parquet"):
        answers = json.loads(row["answers"]) if row["answers"] else None
        votes[row["question_id"]].append(
            Vote(
                row["question_id"], row["swapped"], row["ballot"], row["seed"], answers,
                row["reasoning"], row["log_probability"], row["abstention"],
            )
        )  # fmt: skip
    return votes


def known_paths(ctx: StageContext, num_voted: int) -> tuple[list[PreferenceRow], dict[str, Any]]:
    """Right against wrong paths on fresh known answers, in number what `train_judge.known_share` may need.

    The judge in force answers them, which is the one that cast the votes. `num_voted` rows are there already;
    without any of them nothing is asked. At most `known_answers.num_train` questions are. Also returns how
    many were asked, and how many of them taught nothing because no path was wrong.
    """
    settings = ctx.config.train_judge
    if not settings.known_share or not num_voted or not settings.preference_steps:
        return [], {}
    needed = math.ceil(num_voted * settings.known_share / (1 - settings.known_share))
    seed = derive_seed(ctx.seed, "srpo")
    known = known_answers(ctx, "train", ctx.config.known_answers.num_train, seed)
    voting = VotingConfig(num_ballots=settings.known_ballots)
    judge = open_judge(ctx, ctx.inputs.get("judge_parent"))
    rows: list[PreferenceRow] = []
    num_asked = num_taught = 0
    try:
        for start in range(0, len(known), _ASKED_AT_ONCE):
            if len(rows) >= needed:
                break
            some = known[start : start + _ASKED_AT_ONCE]
            votes: dict[str, list[Vote]] = defaultdict(list)
            for vote in ask(ctx, judge, [k.question for k in some], voting, f"known-{start:06d}"):
                votes[vote.question_id].append(vote)
            for one in some:
                made = known_preference_rows(
                    one, votes[one.question.id], max_rows=settings.pairs_per_question
                )
                rows += made
                num_taught += bool(made)
            num_asked += len(some)
    finally:
        judge.close()
    return rows, {"known_asked": num_asked, "known_without_wrong_path": num_asked - num_taught}
