"""label and pair read a round a few prompts at a time: same results, and memory that it does not set."""

import json
import logging
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import loop.steps.common
import loop.steps.pair
import loop.steps.preference
from loop.config import CampaignConfig
from loop.stages import StageContext
from loop.steps import pair
from loop.steps.common import read_table, write_json, write_table
from loop.steps.judging import VERDICTS
from loop.steps.label import plan_questions
from loop.steps.pair import make_preferences
from loop.steps.prepare import ANCHORS, PROMPTS
from loop.steps.sample import TAKES, plan_takes
from loop.worker import NoProgress

SEGMENTS = [0, 0, 1, 2, 3]
TAKES_PER_PROMPT = 4


def make_round(folder: Path, num_prompts: int, **pairing) -> StageContext:
    """Prompts with four fresh takes and an anchor each, a guided pair for every second, verdicts by dice."""
    config = CampaignConfig.model_validate(
        {
            "name": "test",
            "generator": {"model": "embedded:tiny-wan"},
            "judge": {"model": "embedded:tiny-judge"},
            "certainty": {"min_margin": 0.3, "min_votes": 2, **pairing.pop("certainty", {})},
            "label": {"against_real": 2, "max_take_pairs_per_prompt": 6},
            "sample": {
                "fresh": {"num_prompts": num_prompts, "takes_per_prompt": TAKES_PER_PROMPT},
                "guided": {"num_anchors": num_prompts // 2},
            },
            "pair": pairing,
        }
    )
    inputs = {name: folder / name for name in ("prepare", "sample", "label", "pair")}
    for path in inputs.values():
        path.mkdir(parents=True)
    texts = [f"a cat number {n} walks" for n in range(num_prompts)]
    write_table(
        inputs["prepare"] / "anchors.parquet",
        (
            {"anchor_id": f"anchor-{n}", "file": f"clips/{n}.mp4", "caption": text, "source": f"s{n}",
             "category": "", "part": "train", "sha256": f"{n}"}
            for n, text in enumerate(texts)
        ),
        ANCHORS,
    )  # fmt: skip
    write_table(
        inputs["prepare"] / "prompts.parquet",
        (
            {"prompt_id": f"p{n}", "text": text, "category": "", "part": "train"}
            for n, text in enumerate(texts)
        ),
        PROMPTS,
    )
    write_json(inputs["prepare"] / "clip.json", {"frames_per_segment": 4, "latent_segments": SEGMENTS})
    ctx = StageContext(config, 1, inputs, inputs["pair"], 7, NoProgress(), logging.getLogger("test"), "label")
    prompts, anchors = (read_table(inputs["prepare"] / f"{t}.parquet") for t in ("prompts", "anchors"))
    takes = plan_takes(config, 1, prompts, anchors)
    write_table(inputs["sample"] / "takes.parquet", ({**vars(t), "file": t.file} for t in takes), TAKES)
    rng = np.random.default_rng(0)
    write_table(
        inputs["label"] / "verdicts.parquet", (by_dice(rng, q) for q in plan_questions(ctx, 1)), VERDICTS
    )
    return ctx


def by_dice(rng: np.random.Generator, question) -> dict:
    score = float(rng.integers(9)) / 8
    return {
        "question_id": question.id, "kind": question.kind, "segment": question.segment,
        "prompt": question.prompt, "first_id": question.first.clip_id, "second_id": question.second.clip_id,
        "dimension": "overall", "p_first": score, "p_second": 1 - score, "p_tie": 0.0, "score": score,
        "mode": "first" if score > 0.5 else "second" if score < 0.5 else "tie", "entropy": 0.0,
        "flip_rate": float(rng.integers(2)) / 2, "certainty": max(score, 1 - score),
        "calibrated_for": question.kind if question.kind == "take_take" else None,
        "num_votes": int(rng.integers(1, 5)), "num_abstentions": 0,
    }  # fmt: skip


def few_at_a_time(monkeypatch) -> None:
    monkeypatch.setattr(loop.steps.common, "_ROWS_AT_ONCE", 32)
    monkeypatch.setattr(loop.steps.common, "_ROWS_A_GROUP", 128)
    monkeypatch.setattr(loop.steps.pair, "_PROMPTS_AT_ONCE", 3)
    monkeypatch.setattr(loop.steps.pair, "_COINS_AT_ONCE", 8)
    monkeypatch.setattr(loop.steps.preference, "_AT_ONCE", 16)


@pytest.mark.parametrize(
    "settings",
    [
        {"strategy": "all"},
        {"strategy": "best_worst", "certainty": {"target_precision": 0.9}},
        {"strategy": "all", "certainty": {"target_precision": 0.93}, "sources": {"fresh": {"max": 7}}},
        {"strategy": "ranked", "num_ranked": 2, "weights": "certainty"},
        {"strategy": "all", "real_wins": "unless_contradicted", "control": "random_labels"},
        {"strategy": "ranked", "real_wins": "always", "sources": {"real": {"max": 9, "weight": 0.5}}},
    ],
)
def test_a_round_read_in_parts_makes_the_pairs_of_one_read_whole(tmp_path, monkeypatch, settings):
    ctx = make_round(tmp_path, 25, **settings)
    verdicts = read_table(ctx.inputs["label"] / "verdicts.parquet")
    takes = {t["take_id"]: t for t in read_table(ctx.inputs["sample"] / "takes.parquet")}
    given = pair.Given.read(ctx)
    whole, drops = make_preferences(verdicts, takes, SEGMENTS, ctx.config, ctx.seed, given)
    few_at_a_time(monkeypatch)
    pair.run(ctx)
    rows = read_table(ctx.out / "pairs.parquet")
    assert len(rows) > 8 and rows == [
        {"pair_id": p.pair_id, **{k: v for k, v in vars(p).items() if k != "worth"}} for p in whole
    ]
    counted = {(r["source"], r["reason"]): r["count"] for r in read_table(ctx.out / "drops.parquet")}
    assert counted == drops and sum(drops.values()) > 3
    named = read_table(ctx.out / "dropped.parquet")
    assert sorted(map(str, named)) == sorted(map(str, drops.rows))
    metrics = json.loads((ctx.out / "metrics.json").read_text())
    assert sum(metrics["kept"].values()) == len(rows) and metrics["dropped"] == len(named)


def test_the_most_certain_pairs_of_a_source_come_first(tmp_path, monkeypatch):
    few_at_a_time(monkeypatch)
    ctx = make_round(tmp_path, 25, strategy="all")
    pair.run(ctx)
    rows = read_table(ctx.out / "pairs.parquet")
    for source in ("fresh", "guided", "real"):
        keys = [(-r["certainty"], r["pair_id"]) for r in rows if r["source"] == source]
        assert len(keys) > 3 and keys == sorted(keys)


def test_a_verdict_on_a_take_of_another_round_is_an_error(tmp_path):
    ctx = make_round(tmp_path, 4)
    path = ctx.inputs["label"] / "verdicts.parquet"
    rows = read_table(path)
    rows[5] |= {"first_id": "r009-fresh-p0-0", "second_id": "r009-fresh-p0-1"}
    write_table(path, rows, VERDICTS)
    with pytest.raises(ValueError, match="is about r009-fresh-p0-0 and r009-fresh-p0-1, of which the round"):
        pair.run(ctx)


def most_memory(folder: Path, num_prompts: int) -> dict[str, int]:
    """Bytes of Python objects at the worst moment, by what is done."""
    ctx = make_round(folder, num_prompts, strategy="all")
    anchors = read_table(ctx.inputs["prepare"] / "anchors.parquet")
    prompts = read_table(ctx.inputs["prepare"] / "prompts.parquet")
    takes = plan_takes(ctx.config, 1, prompts, anchors)
    found = {}
    for name, work in {
        "takes": lambda: [None for take in takes if not take.file],
        "questions": lambda: [None for q in plan_questions(ctx, 1) if not q.id],
        "pairs": lambda: pair.run(ctx),
    }.items():
        work()  # what is imported or cached once is not the round's
        tracemalloc.start()
        work()
        found[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return found


def test_four_times_the_takes_need_no_more_memory(tmp_path, monkeypatch):
    """But for the anchors, of which there is one a prompt here: their rows are held, some 500 bytes each."""
    few_at_a_time(monkeypatch)
    small, large = (most_memory(tmp_path / f"{n}", n) for n in (100, 400))
    for name in small:
        assert large[name] < small[name] + 300 * 1500 + 50_000, (name, small, large)
