"""The gate part of the embedded world, and a judge_gate of any judge on it: what the planted tests run.

    python -m tests.planted_rounds --honest 0 1 2 [--steps N] [--captions N]
    python -m tests.planted_rounds --planted 0 1 2

prints the alarms of the embedded tiny judge, trained for N steps as configs/quickstart.yaml does it, or of
each planted judge, by seed, with what was measured.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loop.config import CampaignConfig
from loop.config_file import load_config
from loop.progress import Display
from loop.stages import StageContext, derive_seed
from loop.steps import judge_gate, prepare, train_judge

# judge → the alarm that must name its vice
PLANTED = {
    "LovesFrozen": "loves_frozen",
    "LovesSaturated": "loves_saturated",
    "LovesBlur": "loves_blurred",
    "Quality": "ignores_caption",
    "Position": "answers_by_position",
    "Coin": "no_better_than_chance",
}


def config_of(judge: str | None, seed: int, *overrides: str) -> CampaignConfig:
    """quickstart with alarms, the gate part of quickstart and little else; None = the embedded judge."""
    planted = [
        f"judge={{type: python, target: 'tests.planted_judges:{judge}'}}",
        "held_out_judge={model: embedded:tiny-judge, instructions: compare, num_segment_frames: 5, "
        "frame_size: 32, time_stamps: false, max_new_tokens: 48, batch_size: 64}",
        "train_judge={num_steps: 0}",
    ]
    return load_config(
        "quickstart",
        [
            f"seed={seed}",
            "threads=1",
            "launch.min_free_gb=0",
            "alarms={}",
            "data.num_anchors={train: 4, calibrate: 4, gate: 24, report: 1}",
            "data.split={train: 2, calibrate: 2, gate: 12, report: 1}",
            *(planted if judge else []),
            *overrides,
        ],
    ).config


def run(stage: Any, out: Path, config: CampaignConfig, number: int = 1, **inputs: Path) -> Path:
    """One stage called directly, with the seed that a campaign would give it."""
    out.mkdir(parents=True)
    name = stage.__name__.rpartition(".")[2]
    progress, seed = Display(1).stage(number, name), derive_seed(config.seed, number, name)
    stage.run(StageContext(config, number, inputs, out, seed, progress, logging.getLogger("retake"), name))
    return out


def judged(folder: Path, prepared: Path, config: CampaignConfig) -> dict[str, Any]:
    """gate.json of the judge's first round."""
    trained = run(train_judge, folder / "train_judge", config, prepare=prepared)
    gate = run(judge_gate, folder / "judge_gate", config, prepare=prepared, train_judge=trained)
    return json.loads((gate / "gate.json").read_text())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--honest", type=int, nargs="*", default=[], metavar="SEED")
    parser.add_argument("--planted", type=int, nargs="*", default=[], metavar="SEED")
    parser.add_argument("--steps", type=int, default=24, help="supervised steps of the honest judge")
    parser.add_argument("--captions", type=int, default=48, help="captions that the honest judge learns from")
    given = parser.parse_args(arguments)
    runs = [(None, seed, [f"train_judge.num_steps={given.steps}"]) for seed in given.honest]
    runs += [(name, seed, []) for seed in given.planted for name in PLANTED]
    with tempfile.TemporaryDirectory() as where:
        for name, seed, overrides in runs:
            if name is None:  # two clips of a caption, as quickstart has them
                overrides += [
                    f"data.num_anchors={{train: {2 * given.captions}, calibrate: 24, gate: 24, report: 1}}",
                    f"data.split={{train: {given.captions}, calibrate: 12, gate: 12, report: 1}}",
                ]
            config = config_of(name, seed, *overrides)
            prepared = Path(where) / f"prepare-{seed}-{name is None}"
            if not prepared.exists():
                run(prepare, prepared, config, 0)
            found = judged(Path(where) / f"{seed}-{name}", prepared, config)
            told = {kind: f"{of['accuracy']:.2f} of {of['num']}" for kind, of in found["probes"].items()}
            names = [alarm["name"] for alarm in found["alarms"]]
            print(name or "honest", f"seed {seed}:", ", ".join(names) or "no alarm", told, flush=True)


if __name__ == "__main__":
    main()
