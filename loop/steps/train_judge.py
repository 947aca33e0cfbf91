"""train_judge: the judge learns from known answers, and from round 2 on from its own confident votes."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import numpy as np

from loop.models import check_training, makes_judge
from loop.stages import StageContext
from loop.steps.common import read_table, verdicts_of, write_json
from loop.steps.judge_gate import known_answers
from loop.steps.judging import judge_config
from loop.steps.label import plan_questions
from reward.certainty import why_not_confident
from reward.preferences import PreferenceRow, known_answer_rows, make_preference_rows
from reward.question import Question, Vote
from reward.train import train_judge
from reward.voting import Verdict


def run(ctx: StageContext) -> None:
    if not makes_judge(ctx.config):
        check_training(ctx.config)
        write_json(ctx.out / "metrics.json", {"trained": False})  # it judges as it came
        return
    parent = judge_config(ctx, ctx.inputs.get("judge_parent"))
    assert parent.model is not None
    supervised = known_answer_rows(known_answers(ctx, "train", ctx.config.known_answers.num_train, ctx.seed))
    own, drops = _own_votes(ctx) if "label" in ctx.inputs else ([], {})
    log_path = ctx.out / "log.jsonl"
    log_path.write_text("")  # a killed attempt starts again from its first step

    def on_log(row: dict[str, Any]) -> None:
        with log_path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        ctx.log.info("%s", row)

    settings = ctx.config.train_judge
    ctx.progress.start(settings.num_steps + (settings.preference_steps if own else 0), "steps")
    done = 0

    def on_progress(step: int, total: int) -> None:
        nonlocal done
        ctx.progress.advance(step - done)
        done = step

    report = train_judge(
        parent.model, supervised, own, settings, parent, ctx.out / "judge", ctx.seed, on_progress, on_log
    )
    write_json(ctx.out / "metrics.json", {**report, "own_votes_dropped": drops})


def _own_votes(ctx: StageContext) -> tuple[list[PreferenceRow], dict[str, int]]:
    """Right against wrong reasoning paths of the previous round's confident verdicts (SRPO)."""
    label = ctx.inputs["label"]
    questions = {q.id: q for q in plan_questions(ctx, ctx.round - 1)}
    votes: dict[str, list[Vote]] = defaultdict(list)
    for row in read_table(label / "votes.parquet"):
        answers = json.loads(row["answers"]) if row["answers"] else None
        votes[row["question_id"]].append(
            Vote(
                row["question_id"], row["swapped"], row["ballot"], row["seed"], answers,
                row["reasoning"], row["log_probability"], row["abstention"],
            )
        )  # fmt: skip
    rows: list[PreferenceRow] = []
    drops: dict[str, int] = defaultdict(int)
    for question_id, verdict in verdicts_of(read_table(label / "verdicts.parquet")).items():
        reason = why_not_confident(verdict, "overall", ctx.config.certainty)
        made = [] if reason else _rows_of(ctx, questions[question_id], votes[question_id], verdict)
        if not made:
            drops[reason or "unanimous"] += 1
        rows += made
    order = np.random.default_rng(ctx.seed).permutation(len(rows))
    return [rows[i] for i in order], dict(sorted(drops.items()))


def _rows_of(
    ctx: StageContext, question: Question, votes: list[Vote], verdict: Verdict
) -> list[PreferenceRow]:
    most = ctx.config.train_judge.pairs_per_question
    return make_preference_rows(question, votes, verdict, 1.0, max_rows=most)
