"""A made-up but realistic run directory in the real formats, for looking at reports without a campaign.

Every number is invented: the base gets better in round 1, round 2 is rolled back, round 3 is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from generator.clips import write_clip
from loop.embedded import world
from loop.stages import plan
from loop.store import Store, environment

DIMENSIONS = ("text_alignment", "motion", "visual_quality", "overall")
KEPT = {1: True, 2: False, 3: True}
SKILL = {0: 0.25, 1: 0.5, 2: 0.55, 3: 0.85}  # share of faultless clips
SECONDS = {
    "prepare": 21.4,
    "train_judge": 48.2,
    "judge_gate": 9.6,
    "sample": 24.9,
    "label": 31.7,
    "pair": 0.4,
    "update": 44.1,
    "evaluate": 36.3,
    "gate": 0.2,
}
CURVES: dict[str, tuple[float, float, float, float, float]] = {
    # values of rounds 0 to 3, half width of the interval; NaN = not measured
    "oracle_total": (0.062, 0.148, 0.131, 0.412, 0.05),
    "oracle_colour": (0.97, 0.98, 0.99, 0.99, 0.02),
    "oracle_shape": (0.71, 0.76, 0.78, 0.84, 0.05),
    "oracle_direction": (0.23, 0.41, 0.38, 0.72, 0.07),
    "oracle_smoothness": (0.44, 0.58, 0.61, 0.77, 0.06),
    "oracle_permanence": (0.51, 0.66, 0.47, 0.74, 0.06),
    "win_rate_vs_base": (np.nan, 0.63, 0.6, 0.79, 0.05),
    "win_rate_vs_previous": (np.nan, 0.63, 0.46, 0.71, 0.06),
    "fool_rate": (0.11, 0.19, 0.2, 0.31, 0.05),
    "motion_magnitude": (0.41, 0.52, 0.43, 0.66, 0.04),
    "motion_smoothness": (0.61, 0.7, 0.74, 0.8, 0.03),
    "flicker": (0.031, 0.024, 0.022, 0.015, 0.003),
    "drift_from_base": (0.0, 0.012, 0.031, 0.034, 0.002),
    "judge_accuracy": (np.nan, 0.78, 0.86, 0.89, 0.03),
    "judge_flip_rate": (np.nan, 0.19, 0.12, 0.09, 0.03),
    "judge_oracle_agreement_vs_base": (np.nan, 0.66, 0.71, 0.75, 0.05),
    "held_out_win_rate_vs_base": (np.nan, 0.58, 0.52, 0.66, 0.06),
    "held_out_win_rate_vs_previous": (np.nan, 0.58, 0.44, 0.61, 0.06),
    "two_sample_auc": (0.98, 0.96, 0.95, 0.9, 0.03),
    "subject_drift": (0.2, 0.17, 0.16, 0.11, 0.02),
    "update_margin": (np.nan, 0.8, 1.1, 1.4, 0.1),
    "update_implicit_accuracy": (np.nan, 0.66, 0.7, 0.72, 0.05),
    "novelty": (0.5, 0.48, 0.47, 0.44, 0.02),
    "pair_precision_fresh": (np.nan, 0.74, 0.79, 0.82, 0.05),
}
REAL = {"oracle_total": 0.93, "motion_magnitude": 0.71, "flicker": 0.006}
GIT = {"code": {"commit": "588b76c0d1e2f3a4b5c6d7e8f9a0b1c2d3e4f5a6", "dirty": True}, "config": None}
CATEGORIES = {"": 0.0, "ring": 0.04, "square": -0.06}  # what is added to the value over all
ALARMED = {"action": "refresh_pairs"}
BY_JUDGE = ("win_rate_vs_base", "win_rate_vs_previous", "fool_rate")


def fabricate(
    root: Path,
    rounds: int = 3,
    stop_before: tuple[int, str] | None = None,
    markup: str = "",
    num_prompts: int = 12,
    num_questions: int = 120,
) -> Path:
    """Writes a run under root/quickstart and returns it.

    stop_before: the first (round, stage) that is not committed. markup: text put into captions, prompts,
    reasonings and reasons, to see that it is shown as text.
    """
    run = root / "quickstart"
    run.mkdir(parents=True)
    store = Store(run)
    config = {
        "name": "quickstart",
        "seed": 0,
        "rounds": rounds,
        "data": {"anchors": "embedded"},
        "generator": {"model": "embedded:tiny-wan", "family": "wan"},
        "judge": {"model": "embedded:tiny-judge"},
    }
    (run / "resolved.json").write_text(json.dumps(config, indent=2))
    (run / "campaign.yaml").write_text(f"name: quickstart\nseed: 0\nrounds: {rounds}  # {markup}\n")
    store.event("campaign_started", rounds=rounds, git=GIT)
    world_ = _World(num_prompts, markup, num_questions)
    for number, stage in plan(rounds):
        if (number, stage) == stop_before:
            store.event("campaign_stopped", reason="SIGTERM")
            return run
        store.event("stage_started", round=number, stage=stage, log="")
        work = store.begin(number, stage, f"{stage}-{number}")
        getattr(world_, stage)(work, number)
        store.commit(work, number, stage, f"{stage}-{number}", {}, {}, environment(1))
        seconds = SECONDS[stage] * (1 + 0.07 * number)
        store.event("stage_committed", round=number, stage=stage, seconds=round(seconds, 1))
    store.event("campaign_finished", rounds=rounds)
    return run


class _World:
    def __init__(self, num_prompts: int, markup: str, num_questions: int) -> None:
        captions = [c for c in world.combinations() if world.part_of(*c) == "report"]
        step = max(1, len(captions) // num_prompts)
        self.captions = captions[::step][:num_prompts]
        self.markup = markup
        self.num_questions = num_questions

    def caption(self, index: int) -> str:
        return world.caption_of(*self.captions[index]) + (f" {self.markup}" if self.markup else "")

    def prepare(self, out: Path, _: int) -> None:
        rows = []
        for i, combination in enumerate(self.captions):
            file = f"clips/anchor-{i:03d}.mp4"
            _write(out / file, world.render(world.draw_scene(*combination, np.random.default_rng(100 + i))))
            rows.append(
                {
                    "anchor_id": f"anchor-{i:03d}",
                    "file": file,
                    "caption": self.caption(i),
                    "source": f"s{i}",
                    "category": combination[1],
                    "part": "report",
                    "sha256": "0" * 64,
                }
            )
        _table(out / "anchors.parquet", rows)
        _json(out / "skips.json", [])

    def train_judge(self, out: Path, number: int) -> None:
        _json(out / "metrics.json", {"loss": 1.0 / number})

    def judge_gate(self, out: Path, number: int) -> None:
        accuracy = CURVES["judge_accuracy"][number]
        before = CURVES["judge_accuracy"][number - 1] if number > 1 else None
        _json(
            out / "gate.json",
            {
                "use": True,
                "accuracy": accuracy,
                "accuracy_parent": before,
                "num_questions": 240,
                "flip_rate": CURVES["judge_flip_rate"][number],
                "low": accuracy - 0.04,
                "high": accuracy + 0.04,
                "reason": f"not worse than its parent on 240 known answers {self.markup}",
            },
        )

    def sample(self, out: Path, number: int) -> None:
        _table(out / "takes.parquet", self._takes(out, number, "sample", seeds=(10, 11)))

    def label(self, out: Path, number: int) -> None:
        rng = np.random.default_rng(number)
        votes: list[dict[str, Any]] = []
        verdicts: list[dict[str, Any]] = []
        for q in range(self.num_questions):
            i, kind = q % len(self.captions), ("take_take", "take_real", "segment")[q % 3]
            first, second = f"sample-{number}-{i}-10", f"sample-{number}-{i}-11"
            second = f"anchor-{i:03d}" if kind == "take_real" else second
            p = float(np.clip(rng.beta(0.5 + 0.1 * number, 0.5), 0.01, 0.96))
            shared = {
                "question_id": f"q{number}-{q}",
                "kind": kind,
                "segment": q % 4 if kind == "segment" else None,
                "prompt": self.caption(i),
                "first_id": first,
                "second_id": second,
            }
            certainty = abs(2 * p - 1)
            for dimension in DIMENSIONS:
                verdicts.append(
                    {
                        **shared,
                        "dimension": dimension,
                        "p_first": p,
                        "p_second": 0.97 - p,
                        "p_tie": 0.03,
                        "score": p + 0.015,
                        "mode": "first" if p > 0.5 else "second",
                        "entropy": 0.4,
                        "flip_rate": round(0.3 * (1 - certainty), 3),
                        "certainty": certainty,
                        "calibrated_for": None if kind == "take_real" else kind,
                        "num_votes": 4,
                        "num_abstentions": int(q % 17 == 0),
                    }
                )
            for ballot in range(2):
                votes += [self._vote(shared, swapped, ballot, p, q) for swapped in (False, True)]
        _table(out / "votes.parquet", votes)
        _table(out / "verdicts.parquet", verdicts)

    def _vote(
        self, shared: Mapping[str, Any], swapped: bool, ballot: int, p: float, q: int
    ) -> dict[str, Any]:
        answer = "first" if (p > 0.5) != swapped else "second"
        lost = q % 17 == 0 and ballot == 0 and swapped
        flaws = ("steady", "vanishes") if answer == "first" else ("stutters", "steady")
        reasoning = (
            f"first: {shared['prompt']}, {flaws[0]}. second: {shared['prompt']}, {flaws[1]}. {self.markup}"
        )
        return {
            **shared,
            "swapped": swapped,
            "ballot": ballot,
            "seed": q,
            "answers": None if lost else json.dumps(dict.fromkeys(DIMENSIONS, answer)),
            "reasoning": reasoning,
            "log_probability": -1.0,
            "abstention": "missing_tag" if lost else None,
        }

    def pair(self, out: Path, number: int) -> None:
        pairs = [
            {
                "pair_id": f"p{number}-{n}",
                "source": ("fresh", "guided", "real")[n % 3],
                "prompt_id": f"prompt-{n % 12}",
                "prompt": self.caption(n % len(self.captions)),
                "winner_id": f"sample-{number}-{n % len(self.captions)}-10",
                "loser_id": f"sample-{number}-{n % len(self.captions)}-11",
                "signs": [1, 1, 1, 1, -1],
                "weight": 0.8,
                "certainty": 0.8,
                "question_id": f"q{number}-{n}",
            }
            for n in range(0, self.num_questions, 2 if number > 1 else 3)
        ]
        _table(out / "pairs.parquet", pairs)
        rows = [
            {
                "source": "fresh",
                "reason": f"tie{self.markup}" if n == 1 else "uncertain",
                "question_id": f"q{number}-{n}",
                "first_id": "",
                "second_id": "",
            }
            for n in range(1, self.num_questions, 4)
        ]
        _table(out / "dropped.parquet", rows)
        drops = [
            ("fresh", "low_certainty", 19 - 3 * number),
            ("fresh", "tie", 6),
            ("guided", "low_certainty", 14),
            ("guided", "segments_disagree", 9 - number),
            ("real", "over_quota", 12),
            ("real", "abstained", 2),
        ]
        _table(
            out / "drops.parquet", [dict(zip(("source", "reason", "count"), d, strict=True)) for d in drops]
        )

    def update(self, out: Path, number: int) -> None:
        _json(out / "metrics.json", {"implicit_accuracy": 0.7})

    def evaluate(self, out: Path, number: int) -> None:
        takes = self._takes(out, number, "evaluate", seeds=(0, 1))
        for take in takes:
            take["oracle_total"] = round(
                (0.93 if take.pop("faultless") else 0.24) - 0.01 * (len(take["prompt"]) % 9), 2
            )
        _table(
            out / "scores.parquet",
            [_marks(t["take_id"], t.pop("oracle_total")) for t in takes],
        )
        _table(out / "takes.parquet", takes)
        rows = []
        for metric, curve in CURVES.items():
            half = 0.0 if metric == "drift_from_base" and number == 0 else curve[4]
            for category, more in CATEGORIES.items():
                rows.append(
                    {
                        "round": number,
                        "metric": metric,
                        "part": "report",
                        "category": category,
                        "value": curve[number] + more,
                        "low": max(0.0, curve[number] + more - half),
                        "high": curve[number] + more + half
                        if metric == "motion_magnitude"
                        else min(1.0, curve[number] + more + half),
                        "num_clips": 12 if category else 24,
                        "judge": f"3fa9c01b77e{number}" if metric in BY_JUDGE else "",
                    }
                )
        for metric, value in REAL.items():
            rows.append(rows[0] | {"metric": f"real_{metric}", "value": value, "low": value, "high": value})
        _table(out / "metrics.parquet", rows)

    def gate(self, out: Path, number: int) -> None:
        rate = CURVES["win_rate_vs_previous"][number]
        told = (
            "the lower bound clears 0.5"
            if KEPT[number]
            else "the interval includes 0.5 and permanence fell by 0.19"
        )
        _json(
            out / "gate.json",
            {
                "keep": KEPT[number],
                "reason": f"{told} {self.markup}".strip(),
                "win_rate": rate,
                "low": rate - 0.06,
                "high": rate + 0.06,
                "num_prompts": 96,
                "alpha": 0.03,
                "power": {"num_prompts": 96, "detects": 0.08},
            }
            | ({} if KEPT[number] else ALARMED | {"alarms": [self._alarm()]}),
        )

    def _alarm(self) -> dict[str, str]:
        return {
            "name": "judge_up_motion_down",
            "reason": f"the training judge rose by 0.03 while motion fell by 0.09 {self.markup}".strip(),
        }

    def _takes(self, out: Path, number: int, stage: str, seeds: tuple[int, ...]) -> list[dict[str, Any]]:
        takes = []
        for i, combination in enumerate(self.captions):
            for seed in seeds:
                rng = np.random.default_rng((i, seed))
                faultless = bool(rng.uniform() < SKILL[number])
                take_id = f"{stage}-{number}-{i}-{seed}"
                file = f"clips/{take_id}.mp4"
                _write(out / file, _clip(combination, rng, faultless))
                takes.append(
                    {
                        "take_id": take_id,
                        "kind": "fresh",
                        "prompt_id": f"prompt-{i:02d}",
                        "prompt": self.caption(i),
                        "category": combination[1],
                        "file": file,
                        "seed": seed,
                        "anchor_id": None,
                        "eta": None,
                        "pair_index": None,
                        "faultless": faultless,
                    }
                )
        return takes


def _clip(combination: tuple[str, str, str], rng: np.random.Generator, faultless: bool) -> np.ndarray:
    """A rendered clip; a flawed one goes the wrong way, stutters or vanishes."""
    flaw = ("direction", "stutters", "vanishes")[int(rng.integers(3))]
    if not faultless and flaw == "direction":
        combination = (combination[0], combination[1], ("left", "right", "up", "down")[int(rng.integers(4))])
    frames = world.render(world.draw_scene(*combination, rng))
    if not faultless and flaw == "stutters":
        frames = frames[[0, 0, 0, 0, 2, 2, 8, 8, 8, 8, 8, 13, 13, 13, 13, 16, 16]]
    if not faultless and flaw == "vanishes":
        frames = frames.copy()
        frames[6:12] = world.BACKGROUND
    noise = np.random.default_rng(7).normal(0, 3 if faultless else 9, frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


def _marks(take_id: str, total: float) -> dict[str, Any]:
    parts = {"oracle_colour": 0.98, "oracle_direction": total, "oracle_permanence": round(total**0.5, 3)}
    return {"take_id": take_id, "oracle_total": total, **parts, "motion_magnitude": 0.02, "flicker": 0.003}


def _write(path: Path, frames: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(path, frames, world.FPS)


def _table(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))
