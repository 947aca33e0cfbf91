"""evaluate: the generator films the report prompts with the same seeds every round, and is measured.

Nothing here is read by a training stage. The oracle of the embedded world marks clips from pixels; the
judge's curves come from the judge in force, which changes from round to round, and say so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from generator.clips import read_clip
from generator.models.base import VideoModel
from generator.road import read_latents
from loop.measure import measure
from loop.stages import StageContext, derive_seed
from loop.statistics import Interval, bootstrap_mean
from loop.steps import leakage
from loop.steps.common import clip_paths, load_generator, read_table, write_table
from loop.steps.conditions import condition_of
from loop.steps.judge_gate import known_answers
from loop.steps.judging import accuracy, ask, fold_all, open_judge, write_verdicts
from loop.steps.questions import StoredClip, make_question
from loop.steps.sample import TAKES, Take, anchor_of, film
from reward.config import VotingConfig
from reward.judge import Judge
from reward.question import Question
from reward.voting import Verdict

METRICS = pa.schema(
    [
        ("round", pa.int64()),
        ("metric", pa.string()),
        ("part", pa.string()),
        ("category", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("num_clips", pa.int64()),
        ("judge", pa.string()),
    ]
)
_CLEAR_DIFFERENCE = 0.05  # of the oracle's total: below, two takes are as good as each other
_DRIFT_LEVELS = (0.25, 0.5, 0.75)


class Rows:
    """Collects metrics with their intervals over prompts."""

    def __init__(self, ctx: StageContext) -> None:
        self.ctx, self.part = ctx, ctx.config.evaluate.part
        self.rows: list[dict[str, Any]] = []

    def add(
        self,
        metric: str,
        values: Sequence[float],
        groups: Sequence[str],
        *,
        category: str = "",
        judge: str = "",
    ) -> None:
        self.add_interval(metric, bootstrap_mean(values, groups, seed=0), category=category, judge=judge)

    def add_by_category(
        self, metric: str, values: Sequence[float], takes: Sequence[Take], *, judge: str = ""
    ) -> None:
        """A row over all takes ("" stands for them), and one for each category that they have."""
        self.add(metric, values, [t.prompt_id for t in takes], judge=judge)
        for category in sorted({t.category for t in takes} - {""}):
            of = [i for i, t in enumerate(takes) if t.category == category]
            groups = [takes[i].prompt_id for i in of]
            self.add(metric, [values[i] for i in of], groups, category=category, judge=judge)

    def add_interval(self, metric: str, found: Interval, *, category: str = "", judge: str = "") -> None:
        self.rows.append(
            {
                "round": self.ctx.round,
                "metric": metric,
                "part": self.part,
                "category": category,
                "value": found.value,
                "low": found.low,
                "high": found.high,
                "num_clips": found.num,
                "judge": judge,
            }
        )


def run(ctx: StageContext) -> None:
    model = load_generator(ctx, ctx.inputs.get("generator"))
    takes = plan(ctx)
    film(ctx, model, takes, clip_paths(ctx, "prepare"))
    write_table(ctx.out / "takes.parquet", ({**vars(t), "file": t.file} for t in takes), TAKES)
    rows = Rows(ctx)
    scores = _score(ctx, takes)
    for name in scores[0]:
        rows.add_by_category(name, [s[name] for s in scores], takes)
    table = pa.Table.from_pylist([{"take_id": t.take_id, **s} for t, s in zip(takes, scores, strict=True)])
    write_table(ctx.out / "scores.parquet", table.to_pylist(), table.schema)
    _anchors(ctx, rows)
    if "generator" in ctx.inputs:
        drift = _drift(ctx, model, load_generator(ctx, None), takes)
        rows.add("drift_from_base", drift, [t.prompt_id for t in takes])
    leakage.probe(ctx, model, rows.add_interval)
    del model
    _judge(ctx, takes, [s.get("oracle_total") for s in scores], rows)
    _pair_precision(ctx, rows)
    write_table(ctx.out / "metrics.parquet", rows.rows, METRICS)


def plan(ctx: StageContext) -> list[Take]:
    """The same prompts and seeds in every round of a campaign."""
    takes = []
    anchors = read_table(ctx.inputs["prepare"] / "anchors.parquet")
    for p in read_table(ctx.inputs["prepare"] / "prompts.parquet"):
        if p["part"] == ctx.config.evaluate.part:
            for n in range(ctx.config.evaluate.num_seeds):
                name = f"{p['prompt_id']}-{n}"
                seed = derive_seed(ctx.config.seed, "evaluate", name)
                anchor = anchor_of(ctx.config, anchors, p, 1, n)
                takes.append(Take(name, "fresh", p["prompt_id"], p["text"], p["category"], seed, anchor))
    return takes


def oracle_marks(ctx: StageContext, frames: np.ndarray, caption: str) -> dict[str, float]:
    """The embedded world's marks, or nothing for real clips, which no oracle knows."""
    if ctx.config.data.anchors != "embedded":
        return {}
    from loop.embedded import oracle

    return {f"oracle_{k}": v for k, v in oracle.score(frames, caption).items()}


def _score(ctx: StageContext, takes: Sequence[Take]) -> list[dict[str, float]]:
    scores = []
    for t in takes:
        frames, _ = read_clip(ctx.out / t.file)
        scores.append({**oracle_marks(ctx, frames, t.prompt), **measure(frames)})
    return scores


def _anchors(ctx: StageContext, rows: Rows) -> None:
    """The same measures on the held-out real clips: the line that the curves are to reach."""
    folder = ctx.inputs["prepare"]
    anchors = [a for a in read_table(folder / "anchors.parquet") if a["part"] == ctx.config.evaluate.part]
    found: dict[str, list[float]] = defaultdict(list)
    for a in anchors:
        frames, _ = read_clip(folder / a["file"])
        for name, value in {**oracle_marks(ctx, frames, a["caption"]), **measure(frames)}.items():
            found[name].append(value)
    for name, values in found.items():
        rows.add(f"real_{name}", values, [a["source"] for a in anchors])


@torch.no_grad()
def _drift(ctx: StageContext, model: VideoModel, base: VideoModel, takes: Sequence[Take]) -> list[float]:
    """E‖v_θ − v_base‖² per value, on the stored takes at three noise levels."""
    found, anchors = [], clip_paths(ctx, "prepare")
    for t in takes:
        x = read_latents(model, ctx.out / t.file)[None]
        eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(t.seed))
        level = model.levels_of(torch.tensor(_DRIFT_LEVELS))
        n = len(level)
        noisy = model.parametrisation.noise(x.expand(n, -1, -1, -1, -1), eps.expand(n, -1, -1, -1, -1), level)
        frame = anchors[t.anchor_id] if t.anchor_id else None
        condition = condition_of(model, [t.prompt], [frame], ctx.config.data.clip.num_frames).repeat(n)
        difference = model.predict(noisy.to(model.device), level, condition) - base.predict(
            noisy.to(base.device), level, condition
        )
        found.append(difference.float().pow(2).mean().item())
    return found


def _judge(ctx: StageContext, takes: Sequence[Take], totals: Sequence[float | None], rows: Rows) -> None:
    """Win rates against base and previous round, fool rate, and how good the judge itself is."""
    trained = ctx.inputs.get("judge")
    judge = open_judge(ctx, trained)
    name = judge.identity()[:12]
    try:
        for metric, other in (("win_rate_vs_base", "base"), ("win_rate_vs_previous", "previous")):
            if other in ctx.inputs:
                _win_rate(ctx, judge, name, metric, takes, totals, ctx.inputs[other], rows)
        _fool_rate(ctx, judge, name, takes, rows)
        known = known_answers(ctx, "report", ctx.config.known_answers.num_report)
        if known:
            asked = [k.question for k in known]
            verdicts = fold_all(asked, ask(ctx, judge, asked, _voting(ctx), "known"))
            truth, groups = [k.answers for k in known], [k.question.group for k in known]
            rows.add("judge_accuracy", accuracy(verdicts, truth, "overall"), groups, judge=name)
            flips = [
                (r, q.group)
                for v, q in zip(verdicts, asked, strict=True)
                if (r := v.dimensions["overall"].flip_rate) is not None
            ]
            rows.add("judge_flip_rate", [f for f, _ in flips], [g for _, g in flips], judge=name)
    finally:
        judge.close()


def _voting(ctx: StageContext) -> VotingConfig:
    return VotingConfig(num_ballots=ctx.config.evaluate.num_ballots)


def _asked(
    ctx: StageContext, judge: Judge, kind: str, what: str, takes: Sequence[Take], others: Sequence[StoredClip]
) -> tuple[list[float], list[Verdict]]:
    """How each take fares against its counterpart: 1 it wins, 0 it loses, ties half."""
    questions: list[Question] = []
    for t, other in zip(takes, others, strict=True):
        mine = StoredClip(f"round-{ctx.round}/{t.take_id}", ctx.out / t.file)
        questions.append(
            make_question(
                kind, t.prompt, (mine, other), ctx.config.judge.dimensions,
                scope=f"{ctx.config.seed}/{ctx.round}/evaluate/{what}", group=t.prompt_id,
            )
        )  # fmt: skip
    verdicts = fold_all(questions, ask(ctx, judge, questions, _voting(ctx), what))
    write_verdicts(ctx.out / f"verdicts-{what}.parquet", questions, verdicts)
    scores = []
    for q, v in zip(questions, verdicts, strict=True):
        score = v.dimensions["overall"].score
        assert isinstance(q.first, StoredClip)
        scores.append(score if q.first.clip_id.startswith(f"round-{ctx.round}/") else 1 - score)
    return scores, verdicts


def _win_rate(
    ctx: StageContext,
    judge: Judge,
    judge_name: str,
    metric: str,
    takes: Sequence[Take],
    totals: Sequence[float | None],
    folder: Path,
    rows: Rows,
) -> None:
    asked = _subset(takes, ctx.config.evaluate.num_judged)
    others = [StoredClip(f"{metric}/{t.take_id}", folder / t.file) for t in asked]
    scores, _ = _asked(ctx, judge, "take_take", metric, asked, others)
    rows.add_by_category(metric, scores, asked, judge=judge_name)
    before = {s["take_id"]: s.get("oracle_total") for s in read_table(folder / "scores.parquet")}
    now = {t.take_id: total for t, total in zip(takes, totals, strict=True)}
    agree, groups = [], []
    for t, score in zip(asked, scores, strict=True):
        a, b = now[t.take_id], before[t.take_id]
        if a is not None and b is not None and abs(a - b) > _CLEAR_DIFFERENCE:
            # the judge's undecided votes count half
            agree.append(0.5 if score == 0.5 else float((score > 0.5) == (a > b)))
            groups.append(t.prompt_id)
    if agree:
        rows.add(
            f"judge_oracle_agreement_{metric.removeprefix('win_rate_')}", agree, groups, judge=judge_name
        )


def _fool_rate(ctx: StageContext, judge: Judge, judge_name: str, takes: Sequence[Take], rows: Rows) -> None:
    folder = ctx.inputs["prepare"]
    by_caption: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for a in read_table(folder / "anchors.parquet"):
        if a["part"] == ctx.config.evaluate.part:
            by_caption[a["caption"]].append(a)
    asked, others = [], []
    for n, t in enumerate(_subset(takes, ctx.config.evaluate.num_judged)):
        real = by_caption.get(t.prompt)
        if real:
            anchor = real[n % len(real)]
            asked.append(t)
            others.append(StoredClip(anchor["anchor_id"], folder / anchor["file"]))
    if asked:
        scores, _ = _asked(ctx, judge, "take_real", "fool_rate", asked, others)
        rows.add_by_category("fool_rate", scores, asked, judge=judge_name)


def _subset(takes: Sequence[Take], num: int | None) -> list[Take]:
    """At most `num` takes, spread evenly over prompts and seeds."""
    if num is None or num >= len(takes):
        return list(takes)
    return [takes[i * len(takes) // num] for i in range(num)]


def _pair_precision(ctx: StageContext, rows: Rows) -> None:
    """The share of this round's take pairs whose winner the oracle marks higher. Reported, never used."""
    if "pair" not in ctx.inputs or ctx.config.data.anchors != "embedded":
        return
    takes = {t["take_id"]: t for t in read_table(ctx.inputs["sample"] / "takes.parquet")}

    def total(name: str) -> float:
        take = takes[name]
        return oracle_marks(ctx, read_clip(ctx.inputs["sample"] / take["file"])[0], take["prompt"])[
            "oracle_total"
        ]

    for source in ("fresh", "guided"):
        right, groups = [], []
        for p in read_table(ctx.inputs["pair"] / "pairs.parquet"):
            if p["source"] == source:
                difference = total(p["winner_id"]) - total(p["loser_id"])
                if abs(difference) > _CLEAR_DIFFERENCE:
                    right.append(float(difference > 0))
                    groups.append(p["prompt_id"])
        if right:
            rows.add(f"pair_precision_{source}", right, groups)
