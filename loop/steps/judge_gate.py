"""judge_gate: a judge that is worse on held-out known answers than its parent is not used; and calibration.

Judge and parent answer the same questions, made from the gate part's anchors. The judge in force is then
calibrated on the calibrate part, since a new judge votes differently.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from loop.held_out import held_out
from loop.stages import StageContext
from loop.statistics import bootstrap_mean
from loop.steps.common import human_pairs, write_json
from loop.steps.human_labels import filter_on_people, human_questions, set_aside
from loop.steps.judge_alarms import watch
from loop.steps.judging import JudgeAtHand, accuracy, flip_rate, known_sources, write_verdicts
from reward.calibration import Calibrator, fit, fit_known, save
from reward.config import VotingConfig
from reward.known_answers import KnownAnswer, make_known_answers


def run(ctx: StageContext) -> None:
    with JudgeAtHand(ctx) as judges:
        _run(ctx, judges)


def _run(ctx: StageContext, judges: JudgeAtHand) -> None:
    candidate, parent = ctx.inputs["train_judge"], ctx.inputs.get("judge_parent")
    known = known_answers(ctx, "gate", ctx.config.judge_gate.num_questions)
    voting = VotingConfig(num_ballots=ctx.config.judge_gate.num_ballots)
    questions = [k.question for k in known]
    before = judges.answer(parent, questions, voting, "parent")
    verdicts = judges.answer(candidate, questions, voting, "candidate")  # last: it is mostly asked on
    truth = [k.answers for k in known]
    new, old = accuracy(verdicts, truth, "overall"), accuracy(before, truth, "overall")
    groups = [q.group for q in questions]
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
    calibrate(ctx, judges, candidate if use else parent)
    write_verdicts(ctx.out / "verdicts.parquet", questions, verdicts)
    if ctx.config.alarms is not None:
        gate |= watch(ctx, judges, candidate if use else parent, known, verdicts if use else before)
    write_json(ctx.out / "gate.json", gate)


def calibrate(ctx: StageContext, judges: JudgeAtHand, judge: Path | None) -> None:
    """Calibrators of the judge in force, by kind of question, fitted under the rule that labels.

    Known answers calibrate known answers. Nothing says what is true of takes, so take_take, take_real and
    segment stay uncalibrated, but for take_take where people compared clips and some of their pairs are set
    aside (certainty.human_share).
    """
    # with its early stops: verdicts of another rule would calibrate another score
    voting, limits = ctx.config.label.voting, ctx.config.certainty
    calibrators: dict[str, Calibrator] = {}
    known = known_answers(ctx, "calibrate", ctx.config.known_answers.num_calibrate)
    if known:
        verdicts = judges.answer(judge, [k.question for k in known], voting, "calibrate")
        truth = [k.answers for k in known]
        calibrators |= fit_known(verdicts, truth, limits.min_labels, limits.isotonic_labels)
    if limits.human_share:
        calibrators |= _calibrate_on_people(ctx, judges, judge)
    save(calibrators, ctx.out / "calibrators.json")


def _calibrate_on_people(ctx: StageContext, judges: JudgeAtHand, judge: Path | None) -> dict[str, Calibrator]:
    """The calibrator of take_take from the human pairs that are set aside, if they are enough.

    human.json says what the filter reaches on them; see `filter_on_people`.
    """
    folder, limits = ctx.inputs["prepare"], ctx.config.certainty
    rows = set_aside(human_pairs(folder), held_out(ctx), ctx.config)
    questions, truth = human_questions(rows, folder, ctx.config)
    verdicts = judges.answer(judge, questions, ctx.config.label.voting, "human")
    write_json(
        ctx.out / "human.json", filter_on_people(verdicts, truth, [q.group for q in questions], limits)
    )
    num = sum(v.num_votes > 0 for v in verdicts)
    if num < limits.min_labels:
        ctx.log.warning(
            "take_take stays uncalibrated: the judge answered %d human pairs that are set aside, and "
            "certainty.min_labels asks for %d; raise certainty.human_share or lower min_labels",
            num, limits.min_labels,
        )  # fmt: skip
        return {}
    # people said which clip is better overall: that says nothing of the other dimensions
    found = fit("take_take", verdicts, truth, limits.min_labels, limits.isotonic_labels, pooled=False)
    return {"take_take": found}


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
