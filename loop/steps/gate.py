"""gate: keep the new generator, or roll back to its parent.

Both film the gate part's prompts with seeds that no earlier round has used, and a judge that is frozen for
the whole campaign (held_out_judge, or the configured one before any training here) compares them blind. The
report part has no say.
"""

from __future__ import annotations

import math

from loop.held_out import held_out_anchors, held_out_prompts
from loop.stages import StageContext, derive_seed
from loop.statistics import bootstrap_mean
from loop.steps.common import clip_paths, load_generator, write_json
from loop.steps.judging import ask, fold_all, open_held_out_judge, write_verdicts
from loop.steps.questions import StoredClip, make_question
from loop.steps.sample import Take, anchor_of, film
from reward.config import VotingConfig


def run(ctx: StageContext) -> None:
    settings = ctx.config.gate
    if not settings.enabled:
        write_json(
            ctx.out / "gate.json", {"keep": True, "reason": "kept: the gate is switched off (gate.enabled)"}
        )
        return
    takes = plan(ctx)
    for folder, update in (("candidate", ctx.inputs["update"]), ("parent", ctx.inputs.get("generator"))):
        film(ctx, load_generator(ctx, update), takes, clip_paths(ctx, "prepare"), folder)
    questions = [
        make_question(
            "take_take",
            t.prompt,
            (
                StoredClip(f"candidate/{t.take_id}", ctx.out / "candidate" / f"{t.take_id}.mp4"),
                StoredClip(f"parent/{t.take_id}", ctx.out / "parent" / f"{t.take_id}.mp4"),
            ),
            ctx.config.measuring_judge.dimensions,
            scope=f"{ctx.config.seed}/{ctx.round}/gate",
            group=t.prompt_id,
        )
        for t in takes
    ]
    judge = open_held_out_judge(ctx)
    voting = VotingConfig(num_ballots=settings.num_ballots)
    try:
        verdicts = fold_all(questions, ask(ctx, judge, questions, voting, "gate"))
    finally:
        judge.close()
    write_verdicts(ctx.out / "verdicts.parquet", questions, verdicts)
    wins = []
    for q, v in zip(questions, verdicts, strict=True):
        score = v.dimensions["overall"].score
        assert isinstance(q.first, StoredClip)
        wins.append(score if q.first.clip_id.startswith("candidate/") else 1 - score)
    # the error is spent over all attempts of a campaign: α·6/(π²k²) sums to α over k = 1, 2, …
    alpha = settings.alpha * 6 / (math.pi**2 * ctx.round**2)
    found = bootstrap_mean(
        wins, [t.prompt_id for t in takes], ctx.seed, level=1 - 2 * alpha, num_draws=20_000
    )
    least = 0.5 - settings.margin
    keep = found.low > least
    reason = (
        f"{'kept' if keep else 'rolled back'}: the frozen judge prefers the new generator to its parent in "
        f"{found.value:.3f} of {found.num} pairs, one-sided lower bound {found.low:.3f} at "
        f"α = {alpha:.4f}, needed above {least:.3f}"
    )
    ctx.log.info("%s", reason)
    result = {
        "keep": keep,
        "reason": reason,
        "win_rate": found.value,
        "low": found.low,
        "high": found.high,
        "num_prompts": len({t.prompt_id for t in takes}),
        "num_pairs": found.num,
        "alpha": alpha,
    }
    write_json(ctx.out / "gate.json", result)


def plan(ctx: StageContext) -> list[Take]:
    """Gate prompts with seeds of this round's own."""
    takes = []
    anchors = held_out_anchors(ctx, "gate")
    for p in held_out_prompts(ctx, "gate"):
        for n in range(ctx.config.gate.num_seeds):
            name = f"{p['prompt_id']}-{n}"
            seed = derive_seed(ctx.config.seed, "gate", ctx.round, name)
            anchor = anchor_of(ctx.config, anchors, p, ctx.round, n)
            takes.append(Take(name, "fresh", p["prompt_id"], p["text"], p["category"], seed, anchor))
    return takes
