"""kill -9 (and one SIGTERM) amid every stage of a real tiny campaign: the same bytes in the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loop.stages import plan
from tests.toy_campaign import tree

SCRIPT = Path(__file__).with_name("killed_campaign.py")
CONFIG = """\
name: killed
seed: 3
rounds: 2
threads: 1
data:
  num_anchors: 8
  clip: {num_frames: 17, height: 32, width: 32, fps: 8}
  split: {train: 2, calibrate: 1, gate: 1, report: 1}
generator: {model: "embedded:tiny-wan", max_text_tokens: 8}
judge:
  model: embedded:tiny-judge
  instructions: compare
  num_segment_frames: 5
  frame_size: 32
  time_stamps: false
  max_new_tokens: 48
known_answers: {num_train: 8, num_calibrate: 8, num_gate: 8, num_report: 8, segments: 4}
train_judge:
  {num_steps: 4, batch_size: 2, preference_steps: 2, preference_batch_size: 2, min_pce: 0, log_every: 1}
judge_gate: {num_questions: 8, margin: 1}  # every judge is used, so round 2 trains on its votes
gate: {num_seeds: 1, num_ballots: 1, margin: 0.5}
sample:
  fresh: {num_prompts: 3, takes_per_prompt: 3}
  guided: {num_anchors: 1, eta: [0.75, 0.9]}
  sampling: {num_steps: 3, batch_size: 2}
  shard_size: 2
label: {voting: {num_ballots: 3}}
certainty: {min_margin: 0, min_votes: 1}    # so few takes leave none to drop
pair: {strategy: all, min_signed_share: 0}
update:
  lora: {rank: 2}
  learning_rate: 1.0e-3
  num_steps: 7
  pairs_per_step: 2
  anchors_per_step: 1
  winner_likelihood: 0.5
  real_likelihood: 0.2
  held_out_share: 0.5
  evaluate_every: 2
  checkpoint_every: 2
evaluate: {num_seeds: 1, num_judged: 4, num_ballots: 1}
launch: {min_free_gb: 0}
"""


def run(folder: Path, hash_seed: int, deaths: dict[str, Any]) -> dict[str, Any]:
    """One process that runs the campaign; its own hash seed, so that no set's order decides a byte unseen."""
    folder.mkdir()
    (folder / "killed.yaml").write_text(CONFIG)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder / "run"), str(folder / "killed.yaml"), json.dumps(deaths)],
        env={
            **os.environ,
            "PYTHONPATH": str(SCRIPT.parent.parent),
            "PYTHONHASHSEED": str(hash_seed),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TMPDIR": str(folder),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def thirds(steps: list[str]) -> list[int]:
    """Where to die: late, and then, in what is left to do, once more."""
    return [max(1, 2 * len(steps) // 3), max(1, len(steps) // 3)]


def same(before: dict[str, bytes], after: dict[str, bytes]) -> None:
    """Raises AssertionError naming the files that differ between two runs."""
    del before["report.html"], after["report.html"]  # tells the time that each stage took
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == []


@pytest.mark.timeout(600)
def test_kill_9_twice_in_every_stage_changes_no_byte(tmp_path):
    whole = run(tmp_path / "whole", 1, {})
    stages = [f"{number}/{stage}" for number, stage in plan(2)]
    assert list(whole["steps"]) == stages and whole["died"] == []
    deaths = {stage: thirds(names) for stage, names in whole["steps"].items()}
    for number in (1, 2):
        # one optimiser step beyond a checkpoint, so that the next launch must go on from it
        names = whole["steps"][f"{number}/update"]
        checkpoint = [i for i, name in enumerate(names) if name == "state.pt"][1]
        deaths[f"{number}/update"][0] = names.index("advance", checkpoint) + 1
    # SIGTERM at the next step, the fifth, which is no multiple of checkpoint_every: it is saved all the same
    before_steps = names[: names.index("start steps")]
    latents = [name for name in before_steps if name.startswith("latents-")]
    assert latents  # which the next launch finds and need not make
    deaths["1/update"][1] = -(len(before_steps) - len(latents) + 2)
    killed = run(tmp_path / "killed", 2, deaths)
    assert killed["died"] == [stage for stage in stages for _ in range(2)]
    last = killed["steps"]["1/update"]
    assert last[last.index("start steps") :].count("advance") == 2  # of seven: it began with the sixth

    before, after = (tree(tmp_path / name / "run") for name in ("whole", "killed"))
    same(before, after)

    # the comparison means something: it has both kinds of judge training, kept updates, resumed checkpoints
    run_dir = tmp_path / "killed" / "run"
    phases = [
        json.loads(line)["phase"]
        for line in (run_dir / "round-002/train_judge/log.jsonl").read_text().splitlines()
    ]
    assert set(phases) == {"sft", "srpo"}
    assert "round-002/update/checkpoint/pytorch_lora_weights.safetensors" in after
    assert {"round-002/label/verdicts.parquet", "round-002/evaluate/metrics.parquet"} <= after.keys()
