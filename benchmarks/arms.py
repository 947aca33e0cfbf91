"""Does the loop improve the model, and for the right reason? Ours against control arms at equal updates.

    python benchmarks/arms.py --seeds 0 1 2 --out runs/arms [--config configs/few-clips.yaml]
                              [--arms ours random_labels …] [--set key=value …]

Every arm is a whole campaign of configs/quickstart.yaml (or the given one) with the gate off; runs that exist
are resumed. The table gives the oracle's total on the report prompts after each round, the paired gain over
the base and the paired difference from ours, each with a bootstrap 95 % interval over captions.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from generator.clips import read_clip
from loop.campaign import run_campaign
from loop.config_file import load_config
from loop.embedded import oracle
from loop.stages import STAGES, Stage, StageContext
from loop.statistics import Interval, bootstrap_mean
from loop.steps import pair
from loop.steps.common import read_table
from loop.store import Store

_NO_PAIRS = ["sample.fresh.num_prompts=4", "sample.guided.num_anchors=1"]  # they would not be looked at
ARMS: dict[str, list[str]] = {
    "ours": [],
    "random_labels": ["pair.control=random_labels"],
    "likelihood": [*_NO_PAIRS, "update.preference_weight=0", "update.winner_likelihood=0"],
    # as many clips a step as ours sees (winners, losers and anchors), all of them real
    "supervised": [*_NO_PAIRS, "update.method=supervised", "update.anchors_per_step=48"],
    "oracle_labels": [],
    # the reference's errors are computed once, for two draws a pair, as where speed is measured
    "fixed_draws": ["update.reference_draws=2"],
}
Scores = dict[str, tuple[str, float]]  # take_id → (prompt, the oracle's total)
SHARED = ["round-000/prepare", "round-000/evaluate"]
SHARED += [f"round-001/{stage}" for stage in ("train_judge", "judge_gate", "sample", "label")]


def oracle_pair(ctx: StageContext) -> None:
    """The upper bound: every verdict between takes is replaced by the oracle's. Only this file may do so."""
    folder = ctx.inputs["sample"]
    takes = {t["take_id"]: t for t in read_table(folder / "takes.parquet")}
    totals = {
        i: oracle.score(read_clip(folder / t["file"])[0], t["prompt"])["total"] for i, t in takes.items()
    }
    judge_verdicts = list(pair.read_verdicts(ctx))
    for v in judge_verdicts:
        first, second = (
            totals.get(v["first_id"], 1.0),
            totals.get(v["second_id"], 1.0),
        )  # an anchor is perfect
        difference = first - second if v["kind"] != "segment" else 0.0
        v["score"] = 0.5 if abs(difference) < 0.1 else float(difference > 0)
        v["mode"] = {0.5: "tie", 1.0: "first", 0.0: "second"}[v["score"]]
        v["certainty"], v["calibrated_for"], v["num_votes"] = 1.0, None, 99
    pair.write_preferences(ctx, lambda: [pair.Chunk(takes, judge_verdicts)])


def share_start(ours: Path, folder: Path) -> None:
    """Gives a new campaign what ours has made before its first pairs: an arm that differs later repeats it.

    The campaign checks every fingerprint, so what does not fit would be refused.
    """
    if folder.exists() or not (ours / "round-001" / "label").exists():
        return
    store = Store(folder)
    store.lock()  # makes the folder a run
    for name in SHARED:
        shutil.copytree(ours / name, folder / name, copy_function=os.link)
    store.unlock()


def run_arm(arm: str, seed: int, out: Path, config: str, overrides: list[str]) -> Path:
    """The finished campaign of one arm."""
    folder = out / f"{arm}-{seed}"
    if not any(key.startswith("sample.") for key in ARMS[arm]):
        share_start(out / f"ours-{seed}", folder)
    settings = [*overrides, *ARMS[arm], f"seed={seed}", "gate.enabled=false", "alarms=null"]
    stages = dict(STAGES)
    if arm == "oracle_labels":
        stages["pair"] = Stage(oracle_pair, STAGES["pair"].inputs, STAGES["pair"].config)
    run_campaign(load_config(config, settings), Store(folder), stages)
    return folder


def scores(run: Path, round_number: int) -> Scores:
    """Of a round's evaluation."""
    folder = run / f"round-{round_number:03d}" / "evaluate"
    prompts = {t["take_id"]: t["prompt_id"] for t in pq.read_table(folder / "takes.parquet").to_pylist()}
    rows = pq.read_table(folder / "scores.parquet").to_pylist()
    return {r["take_id"]: (prompts[r["take_id"]], r["oracle_total"]) for r in rows}


def paired(one: Scores, other: Scores) -> Interval:
    """Mean of one − other over equal prompts and seeds."""
    names = sorted(one)
    return bootstrap_mean([one[n][1] - other[n][1] for n in names], [one[n][0] for n in names], seed=0)


def over_seeds(pairs: list[tuple[Scores, Scores]]) -> Interval:
    """`paired` over several campaigns: a caption's cells of all of them are drawn together."""
    cells = [(one[n][1] - other[n][1], one[n][0]) for one, other in pairs for n in sorted(one)]
    return bootstrap_mean([d for d, _ in cells], [caption for _, caption in cells], seed=0)


def show(found: Interval) -> str:
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--out", type=Path, default=Path("runs/arms"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    rounds = load_config(options.config, options.overrides).config.rounds
    gains: dict[str, list[tuple[Scores, Scores]]] = defaultdict(list)
    differences: dict[str, list[tuple[Scores, Scores]]] = defaultdict(list)
    for seed in options.seeds:
        ours: Scores | None = None
        for arm in options.arms:
            run = run_arm(arm, seed, options.out, options.config, options.overrides)
            by_round = [scores(run, k) for k in range(rounds + 1)]
            ours = by_round[-1] if arm == "ours" else ours
            gains[arm].append((by_round[-1], by_round[0]))
            if ours and arm != "ours":
                differences[arm].append((ours, by_round[-1]))
            totals = [float(np.mean([s for _, s in r.values()])) for r in by_round]
            row = {
                "seed": seed,
                "arm": arm,
                "totals": [round(t, 3) for t in totals],
                "gain": show(paired(*gains[arm][-1])),
                "ours minus this": show(paired(*differences[arm][-1])) if differences[arm] else "",
            }
            print(json.dumps(row), flush=True)
    for arm, both in gains.items():
        row = {"seeds": len(both), "arm": arm, "gain": show(over_seeds(both))}
        if differences[arm]:
            row["ours minus this"] = show(over_seeds(differences[arm]))
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
