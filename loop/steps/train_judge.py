"""train_judge: the judge learns from known answers and seed reasoning, then from its own confident votes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from loop.models import check_training, makes_judge
from loop.stages import StageContext, derive_seed
from loop.steps.common import write_json
from loop.steps.judge_gate import known_answers
from loop.steps.judging import judge_config
from loop.steps.own_votes import known_paths, own_votes
from loop.steps.seed import seed_rows
from loop.stopping import finishing_steps
from reward.config import JudgeConfig, TrainJudgeConfig
from reward.known_answers import KnownAnswer
from reward.preferences import SftRow, known_answer_rows
from reward.scorers.train import train_scorer
from reward.train import train_judge


def run(ctx: StageContext) -> None:
    if not makes_judge(ctx.config):
        check_training(ctx.config)
        _leave(ctx)
        return
    parent = judge_config(ctx, ctx.inputs.get("judge_parent"))
    assert parent.model is not None
    log = _Log(ctx)
    train = _train_scorer if parent.type == "scorer" else _train_writer
    write_json(ctx.out / "metrics.json", train(ctx, parent, _settings(ctx), log))


def _leave(ctx: StageContext) -> None:
    """No step to make: the judge goes on as it came, and one that a branch took over as it was trained."""
    parent = ctx.inputs.get("judge_parent")
    if parent is not None and (parent / "judge").is_dir():
        shutil.copytree(parent / "judge", ctx.out / "judge", dirs_exist_ok=True)
    write_json(ctx.out / "metrics.json", {"trained": False})


def _train_scorer(
    ctx: StageContext, parent: JudgeConfig, settings: TrainJudgeConfig, log: _Log
) -> dict[str, Any]:
    """A scorer learns from known answers alone: it writes no reasoning that it could prefer."""
    assert parent.model is not None
    known = known_answers(ctx, "train", ctx.config.known_answers.num_train, ctx.seed)
    ctx.progress.start(settings.num_steps, "steps")
    out = ctx.out / "judge"
    return train_scorer(parent.model, known, settings, parent, out, ctx.seed, log.step, log.row)


def _train_writer(
    ctx: StageContext, parent: JudgeConfig, settings: TrainJudgeConfig, log: _Log
) -> dict[str, Any]:
    """Supervised steps, SRPO on the round before, GRPO. Returns what to report."""
    assert parent.model is not None
    supervised, found = _supervised(ctx)
    has_votes = "label" in ctx.inputs and settings.preference_steps > 0
    preferred, drops = own_votes(ctx) if has_votes else ([], {})
    if has_votes and not preferred:
        ctx.log.warning("SRPO has nothing to learn from: %s", drops or "the round before asked nothing")
    known, more = known_paths(ctx, len(preferred))
    preference_steps = settings.preference_steps if preferred else 0
    ctx.progress.start(settings.num_steps + preference_steps + settings.grpo_steps, "steps")
    questions = _questions_for_grpo(ctx)
    with finishing_steps() as stopping:
        report = train_judge(
            parent.model,
            supervised,
            [*preferred, *known],
            settings,
            parent,
            ctx.out / "judge",
            ctx.seed,
            log.step,
            log.row,
            questions,
            ctx.scratch / "training",
            stopping,
        )
    return {**report, **found, "own_votes_dropped": drops, **more}


def _settings(ctx: StageContext) -> TrainJudgeConfig:
    """The section as this round trains: until a trained judge is in force it may take more steps."""
    settings = ctx.config.train_judge
    if "judge_parent" in ctx.inputs or settings.cold_start_steps is None:
        return settings
    return settings.model_copy(update={"num_steps": settings.cold_start_steps})


def _supervised(ctx: StageContext) -> tuple[list[SftRow], dict[str, Any]]:
    """Known answers, fresh each round, and all seed rows beside them: steps draw from both alike."""
    rows = known_answer_rows(known_answers(ctx, "train", ctx.config.known_answers.num_train, ctx.seed))
    given = ctx.config.data.seed_reasoning is not None
    if not given or ("judge_parent" in ctx.inputs and not ctx.config.train_judge.seed_every_round):
        return rows, {}
    seed = seed_rows(ctx)
    return [*rows, *seed], {"num_seed_rows": len(seed)}


def _questions_for_grpo(ctx: StageContext) -> list[KnownAnswer]:
    """As many as its steps can ask, each once, but no more than there are supervised ones."""
    settings = ctx.config.train_judge
    each = settings.grpo_batch_size // settings.grpo_replies
    num = min(settings.grpo_steps * each, max(each, ctx.config.known_answers.num_train))
    return known_answers(ctx, "train", num, derive_seed(ctx.seed, "grpo"))


class _Log:
    """log.jsonl and the progress of the training.

    A killed attempt starts again from its last checkpoint; what it had logged up to there is logged again.
    """

    def __init__(self, ctx: StageContext) -> None:
        self.ctx, self.done = ctx, 0
        self.path: Path = ctx.out / "log.jsonl"
        self.path.write_text("")

    def row(self, row: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.ctx.log.info("%s", row)

    def step(self, step: int, total: int) -> None:
        self.ctx.progress.advance(step - self.done)
        self.done = step
