"""gate: keep the new generator, or roll back to its parent.

Both film the gate part's prompts with seeds that no earlier round has used, and a judge that is frozen for
the whole campaign (held_out_judge, or the configured one before any training here) compares them blind. The
report part has no say. Formulas, alarms and what follows a rollback: docs/gate.md.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from loop import power
from loop.alarms import Alarm, as_rows
from loop.held_out import held_out_anchors, held_out_prompts
from loop.stages import StageContext, derive_seed
from loop.statistics import Interval, win_rate_interval
from loop.steps.common import clip_paths, load_generator, write_json
from loop.steps.gate_alarms import compare, gate_alarms
from loop.steps.judging import open_held_out_judge
from loop.steps.sample import Take, anchor_of, film


def run(ctx: StageContext) -> None:
    if not ctx.config.gate.enabled:
        write_json(
            ctx.out / "gate.json", {"keep": True, "reason": "kept: the gate is switched off (gate.enabled)"}
        )
        return
    earlier = _earlier(ctx)
    untried = why_untried(ctx.inputs["update"])
    if untried is not None:
        _nothing_to_promote(ctx, earlier, untried)
        return
    takes = plan(ctx)
    for folder, update in (("candidate", ctx.inputs["update"]), ("parent", ctx.inputs.get("generator"))):
        film(ctx, load_generator(ctx, update), takes, clip_paths(ctx, "prepare"), folder)
    wins = compare(
        ctx, lambda: open_held_out_judge(ctx), ctx.config.measuring_judge.dimensions, takes, "gate"
    )
    alarms = gate_alarms(ctx, takes, wins)
    result = decide(ctx, wins, [t.prompt_id for t in takes], alarms, earlier)
    for line in (result["reason"], power.sentence(result["power"])):
        ctx.log.info("%s", line)
    write_json(ctx.out / "gate.json", result)


def decide(
    ctx: StageContext, wins: list[float], prompts: list[str], alarms: list[Alarm], earlier: dict[str, Any]
) -> dict[str, Any]:
    """gate.json: promotion where the lower bound clears the margin and no alarm forbids it.

    A comparison without an answer (NaN) says nothing of either generator and is left out.
    """
    settings = ctx.config.gate
    attempt = earlier["attempt"] + 1
    alpha = power.attempt_alpha(settings.alpha, attempt)
    num_prompts = len(set(prompts))  # of the gate part: an attempt to come may have all of them answered
    answered = [i for i, score in enumerate(wins) if not math.isnan(score)]
    unanswered = len(wins) - len(answered)
    wins, prompts = [wins[i] for i in answered], [prompts[i] for i in answered]
    found = win_rate_interval(wins, prompts, ctx.seed, alpha)
    least = 0.5 - settings.margin
    ignored = ctx.config.alarms.report_only if ctx.config.alarms is not None else ()
    forbidding = [alarm for alarm in alarms if alarm.name not in ignored]
    clears = found.low > least
    keep = clears and not forbidding
    spread = power.measured_spread(wins, prompts)
    result: dict[str, Any] = {
        "keep": keep,
        "reason": _reason(keep, clears, found, alpha, least, forbidding, unanswered),
        "win_rate": found.value,
        "low": found.low,
        "high": found.high,
        "num_prompts": len(set(prompts)),
        "num_pairs": found.num,
        "num_unanswered": unanswered,
        "alpha": alpha,
        "attempt": attempt,
        "action": "promote" if keep else "roll_back",
        "alarms": as_rows(alarms),
        "power": power.report(settings, spread, num_prompts, attempt, alpha),
    }
    return result | _adapted(ctx, 0 if keep else earlier["rollbacks"] + 1)


def _reason(
    keep: bool,
    clears: bool,
    found: Interval,
    alpha: float,
    least: float,
    forbidding: list[Alarm],
    unanswered: int,
) -> str:
    measured = (
        f"the frozen judge prefers the new generator to its parent in {found.value:.3f} of {found.num} "
        f"pairs, one-sided lower bound {found.low:.3f} at α = {alpha:.4f}, needed above {least:.3f}"
        if found.num
        else "the frozen judge prefers neither"
    )
    if unanswered:
        measured += f"; it gave no answer to {unanswered} of {found.num + unanswered} pairs"
    if not forbidding:
        return f"{'kept' if keep else 'rolled back'}: {measured}"
    told = "; ".join(f"{alarm.name}: {alarm.reason}" for alarm in forbidding)
    s = "" if len(forbidding) == 1 else "s"
    return f"rolled back: alarm{s} {told} ({'though' if clears else 'and'} {measured})"


def _nothing_to_promote(ctx: StageContext, earlier: dict[str, Any], why: str) -> None:
    """No clip is filmed and no error spent: the new weights are the parent's."""
    result = {
        "keep": False,
        "reason": f"nothing to promote: {why}, so that the generator is its parent",
        "action": "none",
        "attempt": earlier["attempt"],
        "alarms": as_rows(gate_alarms(ctx, [], [])),
    }
    ctx.log.info("%s", result["reason"])
    write_json(ctx.out / "gate.json", result | _adapted(ctx, earlier["rollbacks"]))


def _adapted(ctx: StageContext, rollbacks: int) -> dict[str, Any]:
    """What the next rounds are told: rollbacks since the last promotion, and what the update changes."""
    adapt = ctx.config.gate.adapt
    if adapt is None:
        return {} if ctx.config.alarms is None else {"rollbacks": rollbacks}
    return {"rollbacks": rollbacks, "adapt": {"learning_rate": adapt.learning_rate**rollbacks}}


def _earlier(ctx: StageContext) -> dict[str, Any]:
    """The attempts and rollbacks up to this round.

    Without the gate of the round before, and after one that did not count them, every earlier round is taken
    for an attempt: it spends less error than there is.
    """
    counted = {"attempt": ctx.round - 1, "rollbacks": 0}
    if "earlier" in ctx.inputs:
        before = json.loads((ctx.inputs["earlier"] / "gate.json").read_text(encoding="utf-8"))
        counted |= {key: before[key] for key in counted if key in before}
    return counted


def why_untried(update: Path) -> str | None:
    """Why an update left the weights as they were; None for one that changed them."""
    file = update / "metrics.json"
    metrics = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if "skipped" in metrics:
        return f"the update had {metrics['skipped']}"
    if metrics.get("chosen_step") == -1:
        return f"the update broke its limits at once ({metrics.get('stopped')})"
    return None


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
