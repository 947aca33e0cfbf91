"""A small run directory in the real formats, for what reads runs: no model, no clip that decodes.

Every number follows from the arguments, so that tests can state what must come out: take n of prompt p in
round r has the oracle total HARD[p] + 0.01 n + gain · r, and wins against the base with `wins` in round 1 on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from loop.stages import derive_seed, plan
from loop.statistics import bootstrap_mean
from loop.store import MANIFEST, Manifest, Store

HARD = {"a cat runs": 0.5, "a dog sleeps": 0.2, "a bird sings": 0.3, "a fish swims": 0.4}
NUM_SEEDS = 2
DIMENSIONS = ("motion", "overall")
Row = dict[str, Any]


def record(
    run: Path,
    *,
    rounds: int = 2,
    seed: int = 0,
    gain: float = 0.1,
    wins: float = 0.75,
    judge: str = "judge-a",
    prompts: Sequence[str] = tuple(HARD),
    height: int = 32,
    anchors: str = "a",
    base: str = "tiny/base",
    kept: Mapping[int, bool] | None = None,
    stop_before: tuple[int, str] | None = None,
    total: Callable[[str, int, int], float] | None = None,
) -> Path:
    """Writes the run and returns it.

    total: of (prompt, n, round), instead of the oracle total above; NaN = could not be measured.
    stop_before: the first (round, stage) that is not committed; the campaign failed there.
    """
    run.mkdir(parents=True)
    config = {
        "name": run.name,
        "seed": seed,
        "rounds": rounds,
        "data": {"clip": {"num_frames": 17, "height": height, "width": 32, "fps": 8.0}},
        "update": {"beta": 50.0},
    }
    (run / "resolved.json").write_text(json.dumps(config))
    store = Store(run)
    store.event("campaign_started", rounds=rounds)
    for number, stage in plan(rounds):
        store.event("stage_started", round=number, stage=stage, log="")
        if (number, stage) == stop_before:
            store.event("stage_failed", round=number, stage=stage, seconds=0.25)
            store.event("campaign_failed", reason="toy trouble")
            return run
        artefact = store.artefact(number, stage)
        artefact.mkdir(parents=True)
        tables = _tables(
            number, stage, seed, prompts, gain, wins, judge, anchors, (kept or {}).get(number, True), total
        )
        for name, rows in tables.items():
            if name.endswith(".json"):
                (artefact / name).write_text(json.dumps(rows))
            else:
                pq.write_table(pa.Table.from_pylist(rows), artefact / name)
        if "takes.parquet" in tables:
            _clips(artefact, tables["takes.parquet"], run.name if number else base)
        inputs = {"previous": f"{run.name}-evaluate-{number - 1}"} if number else {}
        slice = {"generator": {"model": base}, "sample": {"sampling": {"num_steps": 4}}}
        _commit(artefact, f"{run.name}-{stage}-{number}", number, slice, inputs)
        store.event("stage_committed", round=number, stage=stage, seconds=1.5)
    store.event("campaign_finished", rounds=rounds)
    return run


def _tables(
    number: int, stage: str, seed: int, prompts: Sequence[str], gain: float, wins: float, judge: str,
    anchors: str, kept: bool, total: Callable[[str, int, int], float] | None,
) -> dict[str, Any]:  # fmt: skip
    takes = _takes(number, stage, seed, prompts)
    if stage == "prepare":
        rows = [
            {
                "anchor_id": f"anchor-{i}", "file": f"clips/anchor-{i}.mp4", "caption": prompt,
                "source": f"s{i}", "category": prompt.split()[-1], "part": "report", "sha256": anchors * 64,
            }
            for i, prompt in enumerate(prompts)
        ]  # fmt: skip
        return {"anchors.parquet": rows}
    if stage == "evaluate":
        return _evaluation(number, takes, gain, wins, judge, total)
    if stage == "sample":
        return {"takes.parquet": takes}
    if stage == "label":
        votes = [_vote(takes, swapped) for swapped in (False, True)]
        asked = [(takes[0]["take_id"], takes[1]["take_id"])]
        return {"votes.parquet": votes, "verdicts.parquet": _verdicts("q", takes, asked, [0.75])}
    if stage == "pair":
        pair = {
            "pair_id": f"p{number}", "source": "fresh", "prompt_id": takes[0]["prompt_id"],
            "prompt": takes[0]["prompt"], "winner_id": takes[0]["take_id"], "loser_id": takes[1]["take_id"],
            "signs": [1, 1, -1], "weight": 1.0, "certainty": 0.75, "question_id": "q-0",
        }  # fmt: skip
        return {
            "pairs.parquet": [pair],
            "drops.parquet": [{"source": "fresh", "reason": "close_ranks", "count": 3}],
        }
    if stage == "gate":
        return {"gate.json": {"keep": kept, "reason": "toy", "win_rate": 0.6, "low": 0.5, "high": 0.7}}
    if stage == "judge_gate":
        return {"gate.json": {"use": True, "reason": "toy", "accuracy": 0.8, "num_questions": 16}}
    return {"metrics.json": {}}


def prompt_id(prompt: str) -> str:
    return f"prompt-{hashlib.sha256(prompt.encode()).hexdigest()[:10]}"


def _takes(number: int, stage: str, seed: int, prompts: Sequence[str]) -> list[Row]:
    """Of evaluate, or those that sample films and that label and pair are about."""
    stage = "evaluate" if stage == "evaluate" else "sample"
    before = f"r{number:03d}-fresh-" if stage == "sample" else ""
    takes = []
    for prompt in prompts:
        for n in range(NUM_SEEDS):
            take_id = f"{before}{prompt_id(prompt)}-{n}"
            takes.append(
                {
                    "take_id": take_id, "kind": "fresh", "prompt_id": prompt_id(prompt),
                    "prompt": prompt, "category": prompt.split()[-1], "file": f"clips/{take_id}.mp4",
                    "seed": derive_seed(seed, stage, take_id), "anchor_id": None, "eta": None,
                    "pair_index": None,
                }
            )  # fmt: skip
    return takes


def _evaluation(
    number: int, takes: list[Row], gain: float, wins: float, judge: str,
    total: Callable[[str, int, int], float] | None,
) -> dict[str, Any]:  # fmt: skip
    given = total or (lambda prompt, n, r: HARD.get(prompt, 0.1) + 0.01 * n + gain * r)
    scores = [
        {"take_id": t["take_id"], "oracle_total": given(t["prompt"], int(t["take_id"][-1]), number)}
        for t in takes
    ]
    values = [s["oracle_total"] for s in scores]
    known = [0.75] * len(takes)
    rows = [_metric(number, "oracle_total", values, takes), _metric(number, "judge_accuracy", known, takes)]
    tables: dict[str, Any] = {"takes.parquet": takes, "scores.parquet": scores}
    for metric, rate in (("fool_rate", 0.25), ("win_rate_vs_base", wins), ("win_rate_vs_previous", wins)):
        if number or metric == "fool_rate":
            # the first prompt's takes fare so, the others are undecided
            won = [rate if t["prompt"] == takes[0]["prompt"] else 0.5 for t in takes]
            asked = [
                (
                    f"round-{number}/{t['take_id']}",
                    f"anchor-{i // NUM_SEEDS}" if metric == "fool_rate" else f"{metric}/{t['take_id']}",
                )
                for i, t in enumerate(takes)
            ]
            tables[f"verdicts-{metric}.parquet"] = _verdicts(metric, takes, asked, won)
            rows.append(_metric(number, metric, won, takes, judge))
    rows.append({**rows[0], "metric": "real_oracle_total", "value": 0.9, "num_clips": 4})
    return tables | {"metrics.parquet": rows}


def _metric(number: int, name: str, values: list[float], takes: list[Row], judge: str = "") -> Row:
    found = bootstrap_mean(values, [t["prompt_id"] for t in takes], seed=0)
    return {
        "round": number, "metric": name, "part": "report", "category": "", "value": found.value,
        "low": found.low, "high": found.high, "num_clips": found.num, "judge": judge,
    }  # fmt: skip


def _verdicts(name: str, takes: list[Row], asked: list[tuple[str, str]], won: list[float]) -> list[Row]:
    """won: by the first of each two ids; every other question shows it second."""
    rows = []
    for i, (ids, score) in enumerate(zip(asked, won, strict=True)):
        first, second = ids if i % 2 == 0 else ids[::-1]
        shown = score if i % 2 == 0 else 1 - score
        for dimension in DIMENSIONS:
            rows.append(
                {
                    "question_id": f"{name}-{i}", "kind": "take_take", "segment": None,
                    "prompt": takes[i]["prompt"], "first_id": first, "second_id": second,
                    "dimension": dimension, "p_first": shown, "p_second": 1 - shown, "p_tie": 0.0,
                    "score": shown if dimension == "overall" else 0.5, "mode": "first", "entropy": 0.0,
                    "flip_rate": 0.0, "certainty": 0.5, "calibrated_for": None, "num_votes": 4,
                    "num_abstentions": 0,
                }
            )  # fmt: skip
    return rows


def _vote(takes: list[Row], swapped: bool) -> Row:
    return {
        "question_id": "q-0", "kind": "take_take", "segment": None, "prompt": takes[0]["prompt"],
        "first_id": takes[0]["take_id"], "second_id": takes[1]["take_id"], "swapped": swapped, "ballot": 0,
        "seed": 2**62 + 1, "answers": None if swapped else json.dumps(dict.fromkeys(DIMENSIONS, "first")),
        "reasoning": "first: a cat runs.", "log_probability": -1.0,
        "abstention": "missing_tag" if swapped else None, "shown": None,
    }  # fmt: skip


def _clips(work: Path, takes: list[Row], maker: str) -> None:
    for take in takes:
        (work / take["file"]).parent.mkdir(exist_ok=True)
        (work / take["file"]).write_bytes(f"{maker} {take['take_id']} {take['seed']}".encode())


def _commit(artefact: Path, mark: str, number: int, config: dict[str, Any], inputs: dict[str, str]) -> None:
    """The manifest that Store.commit writes, without waiting for the disk."""
    files = {
        path.relative_to(artefact).as_posix(): {
            "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(artefact.rglob("*"))
        if path.is_file()
    }
    manifest = Manifest(artefact.name, number, mark, config, inputs, {}, files)
    (artefact / MANIFEST).write_text(json.dumps(asdict(manifest)))
