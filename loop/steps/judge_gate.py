"""judge_gate: a judge that is worse on held-out known answers than its parent is not used; and calibration.

Judge and parent answer the same questions, made from the gate part's anchors. The judge in force is then
calibrated on the calibrate part, since a new judge votes differently.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from loop.stages import StageContext
from loop.statistics import bootstrap_mean
from loop.steps.common import write_json
from loop.steps.judging import accuracy, ask, flip_rate, fold_all, known_sources, open_judge, write_verdicts
from reward.certainty import fit, save
from reward.config import VotingConfig
from reward.known_answers import KnownAnswer, make_known_answers
from reward.voting import Verdict


def run(ctx: StageContext) -> None:
    candidate, parent = ctx.inputs["train_judge"], ctx.inputs.get("judge_parent")
    known = known_answers(ctx, "gate", ctx.config.judge_gate.num_questions)
    voting = VotingConfig(num_ballots=ctx.config.judge_gate.num_ballots)
    verdicts = _answer(ctx, candidate, known, voting, "candidate")
    before = _answer(ctx, parent, known, voting, "parent")
    truth = [k.answers for k in known]
    new, old = accuracy(verdicts, truth, "overall"), accuracy(before, truth, "overall")
    groups = [k.question.group for k in known]
    change = bootstrap_mean(np.subtract(new, old).tolist(), groups, ctx.seed)
    interval = bootstrap_mean(new, groups, ctx.seed)
    use = change.value >= -ctx.config.judge_gate.margin
    verb = "is" if use else "is not"
    reason = (
        f"the judge {verb} used: {interval.value:.3f} of {len(known)} held-out known answers right, "
        f"its parent {np.mean(old):.3f} "
        f"(change {change.value:+.3f}, 95 % {change.low:+.3f} to {change.high:+.3f})"
    )
    gate: dict[str, Any] = {
        "use": bool(use),
        "reason": reason,
        "accuracy": interval.value,
        "low": interval.low,
        "high": interval.high,
        "accuracy_parent": float(np.mean(old)),
        "flip_rate": flip_rate(verdicts, "overall"),
        "flip_rate_parent": flip_rate(before, "overall"),
        "abstentions": sum(v.num_abstentions for v in verdicts),
        "num_questions": len(known),
    }
    for name in ctx.config.judge.dimensions:
        gate[f"accuracy_{name}"] = float(np.mean(accuracy(verdicts, truth, name)))
    ctx.log.info("%s", reason)
    _calibrate(ctx, candidate if use else parent)
    write_verdicts(ctx.out / "verdicts.parquet", [k.question for k in known], verdicts)
    write_json(ctx.out / "gate.json", gate)


def _calibrate(ctx: StageContext, judge: Path | None) -> None:
    """One calibrator for known answers; no labels exist for takes, so those kinds stay uncalibrated."""
    known = known_answers(ctx, "calibrate", ctx.config.known_answers.num_calibrate)
    calibrators = {}
    if known:
        # the rule that labels, with its early stops: verdicts of another rule would calibrate another score
        verdicts = _answer(ctx, judge, known, ctx.config.label.voting, "calibrate")
        calibrators["known"] = fit(
            "known", verdicts, [k.answers for k in known], ctx.config.certainty.min_labels
        )
    save(calibrators, ctx.out / "calibrators.json")


def known_answers(ctx: StageContext, part: str, num: int, seed: int | None = None) -> list[KnownAnswer]:
    """Questions on one part's anchors. The same every round, unless a seed is given."""
    if num == 0:
        return []
    settings = ctx.config.known_answers
    return make_known_answers(
        known_sources(ctx, part),
        num,
        ctx.config.seed if seed is None else seed,
        ctx.config.judge.dimensions,
        settings.corruptions,
        settings.segments,
        segment_share=settings.segment_share,
        tie_share=settings.tie_share,
        wrong_caption_share=settings.wrong_caption_share,
        both_share=settings.both_share,
        num_shown=ctx.config.judge.num_frames,
    )


def _answer(
    ctx: StageContext, judge: Path | None, known: list[KnownAnswer], voting: VotingConfig, name: str
) -> list[Verdict]:
    asked = [k.question for k in known]
    opened = open_judge(ctx, judge)
    try:
        return fold_all(asked, ask(ctx, opened, asked, voting, name))
    finally:
        opened.close()
