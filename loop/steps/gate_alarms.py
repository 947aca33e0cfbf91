"""What the gate looks at beside the win rate: the judge that labelled, motion, the update, the pairs."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from generator.clips import read_clip
from loop.alarms import Alarm, collapse_alarms, divergence_alarms, saturation_alarms
from loop.config import SourceConfig
from loop.measure import measure
from loop.models import with_weights
from loop.stages import StageContext
from loop.steps.common import read_table
from loop.steps.judging import ask, fold_all, judge_config, open_judge, scores_of, write_verdicts
from loop.steps.questions import StoredClip, make_question
from loop.steps.sample import Take
from reward.config import VotingConfig
from reward.judge import Judge

_LIMITS = ("over_the_source_limit", "source_switched_off")  # drops that the config asks for


def compare(
    ctx: StageContext,
    open_one: Callable[[], Judge],
    dimensions: tuple[str, ...],
    takes: Sequence[Take],
    name: str,
) -> list[float]:
    """A judge's score of each new take against the parent's take of the same prompt and seed, in [0, 1].

    NaN where it gave no answer in either order: half a win is what a tie counts, not silence.
    `name` is that of the questions; votes of a killed attempt are not asked again. Writes the verdicts.
    """
    questions = [
        make_question(
            "take_take",
            t.prompt,
            (
                StoredClip(f"candidate/{t.take_id}", ctx.out / "candidate" / f"{t.take_id}.mp4"),
                StoredClip(f"parent/{t.take_id}", ctx.out / "parent" / f"{t.take_id}.mp4"),
            ),
            dimensions,
            scope=f"{ctx.config.seed}/{ctx.round}/{name}",
            group=t.prompt_id,
        )
        for t in takes
    ]
    judge = open_one()
    try:
        voting = VotingConfig(num_ballots=ctx.config.gate.num_ballots)
        verdicts = fold_all(questions, ask(ctx, judge, questions, voting, name))
    finally:
        judge.close()
    file = "verdicts.parquet" if name == "gate" else f"verdicts-{name}.parquet"
    write_verdicts(ctx.out / file, questions, verdicts)
    return scores_of("candidate/", questions, verdicts)


def gate_alarms(ctx: StageContext, takes: Sequence[Take], wins: Sequence[float]) -> list[Alarm]:
    """All alarms of the round; `wins` are the held-out judge's scores of `takes`. None without a section."""
    if ctx.config.alarms is None:
        return []
    return [
        *[Alarm(**row) for row in _json(ctx.inputs["judge_gate"] / "gate.json").get("alarms", [])],
        *(_divergence(ctx, takes, wins) if takes and ctx.config.alarms.ask_judge else []),
        *_saturation(ctx),
        *_collapse(ctx),
    ]


def _divergence(ctx: StageContext, takes: Sequence[Take], wins: Sequence[float]) -> list[Alarm]:
    settings = ctx.config.alarms
    assert settings is not None
    trained = ctx.inputs.get("judge")
    if with_weights(ctx.config.judge, trained) == with_weights(ctx.config.measuring_judge):
        training = list(wins)  # one judge for both: its votes are there
    else:
        training = compare(
            ctx, lambda: open_judge(ctx, trained), judge_config(ctx, trained).dimensions, takes, "training"
        )
    # silence leans to neither side
    training, wins = (
        [0.5 if math.isnan(score) else score for score in scores] for scores in (training, wins)
    )
    new, old = (
        [measure(read_clip(ctx.out / folder / f"{t.take_id}.mp4")[0]) for t in takes]
        for folder in ("candidate", "parent")
    )
    moved = sum(m["motion_magnitude"] for m in old) / len(old)
    changes = {
        name: [n[name] - o[name] for n, o in zip(new, old, strict=True)]
        for name in ("motion_magnitude", "motion_smoothness")
    }
    others = {
        "held_out_judge": ([score - 0.5 for score in wins], 0.0),
        "motion": (changes["motion_magnitude"], settings.max_motion_fall * moved),
        "smoothness": (changes["motion_smoothness"], settings.max_smoothness_fall),
    }
    return divergence_alarms(training, others, [t.prompt_id for t in takes], settings)


def _saturation(ctx: StageContext) -> list[Alarm]:
    step = _json(ctx.inputs["update"] / "metrics.json").get("saturated_at")
    if step is None:
        return []
    lines = (ctx.inputs["update"] / "log.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == "train" and row["step"] <= step]
    # those that the update looked at: since its last look at held-out pairs
    seen = [row["implicit_accuracy"] for row in rows[-ctx.config.update.evaluate_every :]]
    return saturation_alarms(step, sum(seen) / len(seen))


def _collapse(ctx: StageContext) -> list[Alarm]:
    settings = ctx.config.alarms
    assert settings is not None
    offered = Counter(
        {
            row["source"]: row["count"]
            for row in read_table(ctx.inputs["pair"] / "drops.parquet")
            if row["reason"] not in _LIMITS
        }
    )
    earlier = ctx.inputs.get("earlier_pair")
    before = _json(earlier / "metrics.json")["kept"] if earlier is not None else {}
    # a source that was switched off since, as in a branch, is no choice any more
    sources = ctx.config.pair.sources
    before = {name: num for name, num in before.items() if _is_on(getattr(sources, name))}
    now = _json(ctx.inputs["pair"] / "metrics.json")["kept"]
    return collapse_alarms(now, offered, before, settings)


def _is_on(source: SourceConfig) -> bool:
    return source.weight > 0 and source.max != 0


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
