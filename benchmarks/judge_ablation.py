"""Which part of the judge earns its cost? Judges of one round, each with one part more than the last.

    python benchmarks/judge_ablation.py --seeds 0 1 2 --out runs/ablation [--steps 300] [--set key=value …]

| arm | the judge |
|---|---|
| direct | answers at once: the empty reasoning is written for it, in training and in asking; one vote |
| reasoning | writes its reasoning first; one vote |
| voting | four ballots, that is four votes in each order |
| filter | the same votes; pairs must pass the certainty filter of the config |
| known | trained on further known answers, asked and filtered again: the control of the next one |
| srpo | trained on as many, and on its own confident votes (SRPO), asked and filtered again |

All arms of a seed judge the same takes of the base and update it once. Both kinds of reply are trained for
`--steps` first, from the shipped judge, which was made with reasoning. One JSON line an arm: accuracy on
known answers of the report part, agreement with the oracle on pairs of takes that it tells apart clearly,
precision of the pairs trained on, gain of the oracle's total. Brackets: bootstrap 95 % over captions.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq

from generator.clips import read_clip
from loop.campaign import run_campaign
from loop.config_file import load_config
from loop.embedded import oracle
from loop.stages import STAGES, StageContext
from loop.statistics import Interval, bootstrap_mean
from loop.steps import label, pair, train_judge
from loop.steps.common import read_table, verdicts_of, write_json
from loop.steps.judge_gate import known_answers
from loop.steps.judging import ask, fold_all, open_judge, write_verdicts, write_votes
from loop.store import Store
from reward import train
from reward.calibration import load
from reward.certainty import apply
from reward.config import CertaintyConfig, JudgeConfig
from reward.encoding import Encoder, Prompt
from reward.judge import JUDGES
from reward.judges.transformers import TransformersJudge
from reward.preferences import known_answer_rows
from reward.question import Ask, Reply, parse_reply, write_reply

NO_REASONING = "<reasoning></reasoning>"
CLEAR = 0.1  # of the oracle's total: below, two takes are as good as each other


@dataclass(frozen=True)
class Arm:
    """`starts_with`: the arm of which it takes over the stages `shared` of round 1."""

    settings: tuple[str, ...] = ()
    reasons: bool = True
    one_vote: bool = False
    filters: bool = True
    starts_with: str | None = "direct"
    shared: tuple[str, ...] = ("sample",)
    preference_steps: int | None = None  # of a second training on the votes of `starts_with`


_FOUR = ("label.voting.num_ballots=4",)
_JUDGED = ("train_judge", "judge_gate", "sample", "label")
ARMS: dict[str, Arm] = {
    "direct": Arm(reasons=False, one_vote=True, filters=False, starts_with=None),
    "reasoning": Arm(one_vote=True, filters=False),
    "voting": Arm(_FOUR, filters=False, starts_with="reasoning", shared=("train_judge", "sample")),
    "filter": Arm(_FOUR, starts_with="voting", shared=_JUDGED),
    "known": Arm(_FOUR, starts_with="filter", preference_steps=0),
    "srpo": Arm(_FOUR, starts_with="filter", preference_steps=12),
}


class DirectEncoder(Encoder):
    """Every message goes on with an empty reasoning, so that the reply is the answer alone."""

    def prompt(self, ask: Ask) -> Prompt:
        asked = super().prompt(ask)
        opening = self.tokenizer(NO_REASONING, add_special_tokens=False)["input_ids"]
        types = None if asked.types is None else [*asked.types, *[0] * len(opening)]
        return replace(asked, ids=[*asked.ids, *opening], types=types)


class DirectJudge(TransformersJudge):
    """The transformers judge, kept from reasoning."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__(config)
        self.encoder = DirectEncoder(self.encoder.processor, config)

    def read(self, ids: list[int], ask: Ask) -> Reply:
        if ids[-1] not in self.stop_ids.tolist():
            return Reply(None, self.encoder.decode(ids), "truncated")
        return parse_reply(NO_REASONING + self.encoder.decode(ids[:-1]), ask.question.dimensions)


def train_directly(ctx: StageContext) -> None:
    """train_judge on known answers whose replies are the answers alone."""
    parent = train_judge.judge_config(ctx, None)
    known = known_answers(ctx, "train", ctx.config.known_answers.num_train, ctx.seed)
    rows = [
        replace(row, reply=write_reply("", k.answers).removeprefix(NO_REASONING))
        for row, k in zip(known_answer_rows(known), known, strict=True)
    ]
    assert parent.model is not None
    with patch.object(train, "Encoder", DirectEncoder):
        report = train.train_judge(
            parent.model, rows, [], ctx.config.train_judge, parent, ctx.out / "judge", ctx.seed
        )
    write_json(ctx.out / "metrics.json", report)


def train_again(parent: Path) -> Callable[[StageContext], None]:
    """train_judge as in a second round after that of `parent`."""

    def run(ctx: StageContext) -> None:
        own = {"judge_parent": parent / "train_judge", "label": parent / "label", "sample": parent / "sample"}
        train_judge.run(replace(ctx, round=2, inputs={**ctx.inputs, **own}))

    return run


def label_with_one_vote(ctx: StageContext) -> None:
    """label, but of every question only the vote in the question's own order counts, which is by coin."""
    questions = list(label.plan_questions(ctx, ctx.round))
    judge = open_judge(ctx, ctx.inputs.get("judge"))
    votes = ask(ctx, judge, questions, ctx.config.label.voting, "votes")
    judge.close()
    kept = [vote for vote in votes if not vote.swapped and vote.ballot == 0]
    calibrators = load(ctx.inputs["judge_gate"] / "calibrators.json")
    write_votes(ctx.out / "votes.parquet", questions, kept)
    verdicts = [apply(v, calibrators) for v in fold_all(questions, kept)]
    write_verdicts(ctx.out / "verdicts.parquet", questions, verdicts)
    write_json(ctx.out / "metrics.json", {"num_votes": len(kept)})


def pair_all(ctx: StageContext) -> None:
    """pair, but every verdict and every gap in rank is certain enough."""
    config = ctx.config.model_copy(
        update={
            "certainty": CertaintyConfig(min_probability=0.5, min_margin=0, min_votes=1),
            "pair": ctx.config.pair.model_copy(update={"min_rank_gap": 0.0}),
        }
    )
    pair.run(replace(ctx, config=config))


def share(source: Path, stages: tuple[str, ...], folder: Path) -> None:
    """Gives a new campaign what another has made: the base's measures, and these stages of round 1."""
    if folder.exists():
        return
    store = Store(folder)
    store.lock()  # makes the folder a run
    for name in ("round-000/prepare", "round-000/evaluate", *(f"round-001/{stage}" for stage in stages)):
        shutil.copytree(source / name, folder / name, copy_function=os.link)
    store.unlock()


def run_arm(name: str, seed: int, out: Path, config: str, overrides: list[str]) -> Path:
    """The finished campaign of one arm."""
    arm, folder = ARMS[name], out / f"{name}-{seed}"
    settings = [*overrides, *arm.settings, f"seed={seed}", "rounds=1", "gate.enabled=false", "alarms=null"]
    settings.append("judge_gate.margin=1")  # every judge is used, or there would be nothing to measure
    stages = dict(STAGES)
    if arm.preference_steps is not None:
        parent = out / f"{arm.starts_with}-{seed}" / "round-001"
        settings += ["train_judge.num_steps=24", f"train_judge.preference_steps={arm.preference_steps}"]
        stages["train_judge"] = replace(STAGES["train_judge"], function=train_again(parent))
    if not arm.reasons:
        stages["train_judge"] = replace(STAGES["train_judge"], function=train_directly)
    if arm.one_vote:
        stages["label"] = replace(STAGES["label"], function=label_with_one_vote)
    if not arm.filters:
        stages["pair"] = replace(STAGES["pair"], function=pair_all)
    if arm.starts_with is not None:
        share(out / f"{arm.starts_with}-{seed}", arm.shared, folder)
    loaded = load_config(config, settings)
    with judges_of(arm):
        run_campaign(loaded, Store(folder), stages)
    return folder


def judges_of(arm: Arm) -> Any:
    """While it lasts, judges of type transformers reason or not, as the arm does."""
    direct = {} if arm.reasons else {"transformers": f"{DirectJudge.__module__}:{DirectJudge.__name__}"}
    return patch.dict(JUDGES, direct)


def agreement(run: Path) -> Interval:
    """How often a verdict between fresh takes is the oracle's, where that is clear; ties are half right."""
    folder = run / "round-001" / "sample"
    takes = {t["take_id"]: t for t in read_table(folder / "takes.parquet")}
    totals = {
        i: oracle.score(read_clip(folder / t["file"])[0], t["prompt"])["total"]
        for i, t in takes.items()
        if t["kind"] == "fresh"
    }
    right, groups = [], []
    rows = [
        r for r in read_table(run / "round-001" / "label" / "verdicts.parquet") if r["kind"] == "take_take"
    ]
    sides = {r["question_id"]: (r["first_id"], r["second_id"]) for r in rows}
    for question, verdict in verdicts_of(rows).items():
        first, second = sides[question]
        difference = totals[first] - totals[second]
        if abs(difference) >= CLEAR:
            mode = verdict.dimensions["overall"].mode
            right.append(float(mode == ("first" if difference > 0 else "second")) + 0.5 * (mode == "tie"))
            groups.append(takes[first]["prompt_id"])
    return bootstrap_mean(right, groups, seed=0)


def metric(run: Path, round_number: int, name: str) -> dict[str, Any]:
    table = pq.read_table(run / f"round-{round_number:03d}" / "evaluate" / "metrics.parquet").to_pylist()
    return next((r for r in table if r["metric"] == name and not r["category"]), {})


def gain(run: Path) -> Interval:
    """Of the oracle's total over the base's, prompt by prompt and seed by seed."""
    totals = []
    for k in (0, 1):
        folder = run / f"round-{k:03d}" / "evaluate"
        totals.append({r["take_id"]: r["oracle_total"] for r in read_table(folder / "scores.parquet")})
    prompts = {t["take_id"]: t["prompt_id"] for t in read_table(folder / "takes.parquet")}
    names = sorted(totals[1])
    return bootstrap_mean([totals[1][n] - totals[0][n] for n in names], [prompts[n] for n in names], seed=0)


def cost(run: Path) -> float:
    """Seconds of training the judge, asking it, and what its gate took."""
    spent = defaultdict(float)
    for event in Store(run).events():
        if event["event"] == "stage_committed":
            spent[event["stage"]] = event["seconds"]
    return sum(spent[stage] for stage in ("train_judge", "label"))


def show(found: Interval | dict[str, Any]) -> str:
    value = vars(found) if isinstance(found, Interval) else found
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" if value else "–"


def row_of(name: str, seed: int, run: Path) -> dict[str, Any]:
    pairs = read_table(run / "round-001" / "pair" / "pairs.parquet")
    return {
        "seed": seed,
        "arm": name,
        "known answers": show(metric(run, 1, "judge_accuracy")),
        "flip rate": show(metric(run, 1, "judge_flip_rate")),
        "agrees with the oracle": show(agreement(run)),
        "fresh pairs": sum(p["source"] == "fresh" for p in pairs),
        "of them right": show(metric(run, 1, "pair_precision_fresh")),
        "gain": show(gain(run)),
        "judge seconds": round(cost(run)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--steps", type=int, default=300, help="supervised steps of both kinds of judge")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    overrides = [f"train_judge.num_steps={options.steps}", *options.overrides]
    for seed in options.seeds:
        for name in options.arms:
            run = run_arm(name, seed, options.out, options.config, overrides)
            print(json.dumps(row_of(name, seed, run)), flush=True)


if __name__ == "__main__":
    main()
