"""What judges say of the evaluated takes: win rates, the fool rate, and how good the judge itself is.

The judge in force changes from round to round; the held-out judge is the same in all of them.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loop.held_out import AnyAnchor, anchors_of
from loop.models import is_judge_untrained
from loop.stages import StageContext
from loop.steps.common import read_table
from loop.steps.judge_gate import known_answers
from loop.steps.judging import (
    accuracy,
    ask,
    fold_all,
    has_held_out_judge_in_force,
    open_held_out_judge,
    open_judge,
    scores_of,
    write_verdicts,
)
from loop.steps.metrics import Rows
from loop.steps.questions import StoredClip, make_question
from loop.steps.sample import Take
from reward.config import VotingConfig
from reward.judge import Judge
from reward.question import Question

CLEAR_DIFFERENCE = 0.05  # of the oracle's total: below, two takes are as good as each other
WIN_RATES = (("win_rate_vs_base", "base"), ("win_rate_vs_previous", "previous"))  # metric, input
HELD_OUT = "held_out_"  # before a metric's name: the same, by the held-out judge


@dataclass(frozen=True)
class _Panel:
    """A judge that is asked about takes, and the dimensions that it answers in."""

    judge: Judge
    dimensions: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its identity, of a sha256 the first 12 digits."""
        return re.sub(r"([0-9a-f]{12})[0-9a-f]{52}", r"\1", self.judge.identity())


def judge_takes(ctx: StageContext, takes: Sequence[Take], totals: Sequence[float | None], rows: Rows) -> None:
    """Adds the rows of the judge in force, then those of the held-out judge.

    totals: the oracle's mark of each take, None where there is no oracle.
    """
    judge = open_judge(ctx, ctx.inputs.get("judge"))
    panel = _Panel(judge, ctx.config.judge.dimensions)
    try:
        for metric, other in WIN_RATES:
            if other in ctx.inputs:
                asked = subset(takes, ctx.config.evaluate.num_judged)
                scores = _win_rate(ctx, panel, metric, asked, ctx.inputs[other], rows)
                _oracle_agreement(ctx, panel, metric, asked, scores, takes, totals, rows)
        _fool_rate(ctx, panel, takes, rows)
        _known_answers(ctx, panel, rows)
    finally:
        judge.close()
    _held_out_win_rates(ctx, takes, rows)


def _held_out_win_rates(ctx: StageContext, takes: Sequence[Take], rows: Rows) -> None:
    """Win rates by the judge that no round changes; nothing is asked that has been answered already.

    While the held-out judge is the one in force, as before any training, its answers stand for both.
    """
    asked = subset(takes, ctx.config.evaluate.held_out_judged)
    if "base" not in ctx.inputs or not asked:
        return
    if has_held_out_judge_in_force(ctx, ctx.inputs.get("judge")):
        for metric, _ in WIN_RATES:
            rows.copy(metric, HELD_OUT + metric)
        return
    if is_judge_untrained(ctx.config.measuring_judge):
        ctx.log.info("no held-out win rates: judge.scorer.new_head is a head of zeros before any training")
        return
    judge = open_held_out_judge(ctx)
    panel = _Panel(judge, ctx.config.measuring_judge.dimensions)
    try:
        for metric, other in WIN_RATES:
            if other == "previous" and ctx.inputs.get(other) == ctx.inputs["base"]:
                rows.copy(HELD_OUT + "win_rate_vs_base", HELD_OUT + metric)
            elif other in ctx.inputs:
                _win_rate(ctx, panel, HELD_OUT + metric, asked, ctx.inputs[other], rows)
    finally:
        judge.close()


def _voting(ctx: StageContext) -> VotingConfig:
    return VotingConfig(num_ballots=ctx.config.evaluate.num_ballots)


def _asked(
    ctx: StageContext,
    panel: _Panel,
    kind: str,
    what: str,
    takes: Sequence[Take],
    others: Sequence[StoredClip],
) -> list[float]:
    """How each take fares against its counterpart: 1 it wins, 0 it loses, ties half, NaN if unanswered."""
    questions: list[Question] = []
    for t, other in zip(takes, others, strict=True):
        mine = StoredClip(f"round-{ctx.round}/{t.take_id}", ctx.out / t.file)
        questions.append(
            make_question(
                kind, t.prompt, (mine, other), panel.dimensions,
                scope=f"{ctx.config.seed}/{ctx.round}/evaluate/{what}", group=t.prompt_id,
            )
        )  # fmt: skip
    verdicts = fold_all(questions, ask(ctx, panel.judge, questions, _voting(ctx), what))
    write_verdicts(ctx.out / f"verdicts-{what}.parquet", questions, verdicts)
    return scores_of(f"round-{ctx.round}/", questions, verdicts)


def _win_rate(
    ctx: StageContext, panel: _Panel, metric: str, asked: Sequence[Take], folder: Path, rows: Rows
) -> list[float]:
    """Against the same prompts and seeds in another round's evaluation; the takes' scores."""
    others = [StoredClip(f"{metric}/{t.take_id}", folder / t.file) for t in asked]
    scores = _asked(ctx, panel, "take_take", metric, asked, others)
    rows.add_by_category(metric, scores, asked, judge=panel.name)
    return scores


def _oracle_agreement(
    ctx: StageContext,
    panel: _Panel,
    metric: str,
    asked: Sequence[Take],
    scores: Sequence[float],
    takes: Sequence[Take],
    totals: Sequence[float | None],
    rows: Rows,
) -> None:
    """How often the judge prefers what the oracle marks clearly higher; its undecided votes count half."""
    versus = metric.removeprefix("win_rate_")
    table = ctx.inputs[versus.removeprefix("vs_")] / "scores.parquet"
    before = {s["take_id"]: s.get("oracle_total") for s in read_table(table)}
    now = {t.take_id: total for t, total in zip(takes, totals, strict=True)}
    agree, groups = [], []
    for t, score in zip(asked, scores, strict=True):
        a, b = now[t.take_id], before[t.take_id]
        if math.isnan(score):
            continue
        if a is not None and b is not None and abs(a - b) > CLEAR_DIFFERENCE:
            agree.append(0.5 if score == 0.5 else float((score > 0.5) == (a > b)))
            groups.append(t.prompt_id)
    if agree:
        rows.add(f"judge_oracle_agreement_{versus}", agree, groups, judge=panel.name)


def real_counterparts(ctx: StageContext, takes: Sequence[Take]) -> list[tuple[Take, AnyAnchor]]:
    """The takes that the judge sees beside a held-out anchor of their caption: the same every round."""
    by_caption: dict[str, list[AnyAnchor]] = defaultdict(list)
    for a in anchors_of(ctx, ctx.config.evaluate.part):
        by_caption[a["caption"]].append(a)
    return [
        (t, real[n % len(real)])
        for n, t in enumerate(subset(takes, ctx.config.evaluate.num_judged))
        if (real := by_caption.get(t.prompt))
    ]


def _fool_rate(ctx: StageContext, panel: _Panel, takes: Sequence[Take], rows: Rows) -> None:
    folder, compared = ctx.inputs["prepare"], real_counterparts(ctx, takes)
    if compared:
        asked = [t for t, _ in compared]
        others = [StoredClip(a["anchor_id"], folder / a["file"]) for _, a in compared]
        scores = _asked(ctx, panel, "take_real", "fool_rate", asked, others)
        rows.add_by_category("fool_rate", scores, asked, judge=panel.name)


def _known_answers(ctx: StageContext, panel: _Panel, rows: Rows) -> None:
    """The judge's own accuracy and flip rate, on anchors of the report part."""
    known = known_answers(ctx, "report", ctx.config.known_answers.num_report)
    if not known:
        return
    asked = [k.question for k in known]
    verdicts = fold_all(asked, ask(ctx, panel.judge, asked, _voting(ctx), "known"))
    truth, groups = [k.answers for k in known], [k.question.group for k in known]
    rows.add("judge_accuracy", accuracy(verdicts, truth, "overall"), groups, judge=panel.name)
    flips = [
        (r, q.group)
        for v, q in zip(verdicts, asked, strict=True)
        if (r := v.dimensions["overall"].flip_rate) is not None
    ]
    rows.add("judge_flip_rate", [f for f, _ in flips], [g for _, g in flips], judge=panel.name)


def subset(takes: Sequence[Take], num: int) -> list[Take]:
    """At most `num` takes, spread evenly over prompts and seeds."""
    if num >= len(takes):
        return list(takes)
    return [takes[i * len(takes) // num] for i in range(num)]
