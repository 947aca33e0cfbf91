"""One round of every paper's config, tiny: its method must show in the pairs, the conditions and the weights.

Overrides change models, data and sizes; the switches and thresholds that make the method stay as shipped.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from generator.clips import read_clip, write_clip
from generator.config import SamplingConfig
from generator.models.base import VideoModel, load_model
from generator.road import read_latents, to_tensor
from generator.sampling import noise_for, sample
from loop.campaign import run_campaign
from loop.config import CampaignConfig
from loop.config_file import load_config
from loop.embedded import world
from loop.embedded.anchors import spread
from loop.models import resolve_model
from loop.progress import Display
from loop.stages import StageContext
from loop.steps.common import clip_paths
from loop.steps.update import _first_frames, read_pairs
from loop.store import Store
from reward.calibration import load

TINY = [
    "rounds=1",
    "threads=1",
    "launch.min_free_gb=0",
    "data.anchors=embedded",
    "data.num_anchors={train: 4, calibrate: 1, gate: 1, report: 1}",
    "data.clip={num_frames: 17, height: 32, width: 32, fps: 8}",
    "data.split={train: 2, calibrate: 1, gate: 1, report: 1}",
    "generator.family=wan",
    "generator.model=embedded:tiny-wan",
    "generator.max_text_tokens=8",
    "generator.dtype=float32",
    "judge={model: embedded:tiny-judge, instructions: compare, num_segment_frames: 5, frame_size: 32, "
    "time_stamps: false, max_new_tokens: 48, batch_size: 64}",
    "known_answers.num_calibrate=4",
    "known_answers.num_gate=4",
    "known_answers.num_report=4",
    "judge_gate={num_questions: 4, num_ballots: 1}",
    "sample.sampling={num_steps: 2, batch_size: 8}",
    "sample.shard_size=8",
    "update.num_steps=3",
    "update.learning_rate=1e-3",
    "update.warmup_steps=0",
    "update.pairs_per_step=2",
    "update.anchors_per_step=1",
    "update.micro_batches=1",
    "update.dtype=float32",
    "evaluate={num_seeds: 2, num_judged: 1, num_ballots: 1}",
    "gate={num_seeds: 1, num_ballots: 1}",
    "alarms.num_probes=1",
]
LEARNS = [
    "known_answers.num_train=8",
    "train_judge={num_steps: 2, batch_size: 2, preference_steps: 2, preference_batch_size: 2, log_every: 1}",
]


def human_pairs(folder: Path, directions: tuple[str, ...]) -> list[str]:
    """Overrides for a file of pairs: clean clips against reversed ones, a tie, held-out prompts."""
    folder.mkdir()
    lines = ["path_A,path_B,prompt,Overall,category"]
    rng = np.random.default_rng(0)
    train = [c for c in world.combinations() if c[2] in directions and world.part_of(*c) == "train"]
    held = [c for c in map(world.parse_caption, spread({"report": 6})) if c[2] in directions]
    labels = ["A", "B", "A", "same", *"A" * len(held)]
    for n, (combination, label) in enumerate(zip([*train[:4], *held], labels, strict=True)):
        for side in "AB":
            frames = world.render(world.draw_scene(*combination, rng))
            write_clip(folder / f"{n}{side}.mp4", frames if side == label else frames[::-1], world.FPS)
        caption = world.caption_of(*combination)
        lines.append(f"{n}A.mp4,./{n}B.mp4,{caption},{label},{combination[2]}")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return [f"data.human_pairs={folder / 'pairs.csv'}"]


class Finished:
    """A campaign that has run, by its files."""

    def __init__(self, root: Path, config: CampaignConfig) -> None:
        self.root, self.config = root, config

    def folder(self, stage: str) -> Path:
        return self.root / f"round-{0 if stage == 'prepare' else 1:03d}" / stage

    def table(self, stage: str, name: str) -> list[dict[str, Any]]:
        return pq.read_table(self.folder(stage) / f"{name}.parquet").to_pylist()

    @property
    def pairs(self) -> list[dict[str, Any]]:
        return self.table("pair", "pairs")

    def drops(self) -> dict[tuple[str, str], int]:
        return {(d["source"], d["reason"]): d["count"] for d in self.table("pair", "drops")}

    def steps(self) -> list[dict[str, Any]]:
        lines = (self.folder("update") / "log.jsonl").read_text().splitlines()
        return [row for row in map(json.loads, lines) if row["split"] == "train"]

    def context(self, stage: str) -> StageContext:
        inputs = {name: self.folder(name) for name in ("prepare", "sample", "label", "pair")}
        display = Display(1)
        return StageContext(
            self.config, 1, inputs, self.root / "again", 0, display.stage(1, stage), None,  # type: ignore[arg-type]
        )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Callable[..., Finished]:
    done: dict[str, Finished] = {}

    def run(name: str, *overrides: str) -> Finished:
        if name not in done:
            root = tmp_path_factory.mktemp(name) / "run"
            loaded = load_config(name, [*TINY, *overrides])
            run_campaign(loaded, Store(root))
            done[name] = Finished(root, loaded.config)
        return done[name]

    return run


def load_tiny(run: Finished, checkpoint: Path | None = None) -> VideoModel:
    model = resolve_model(run.config.generator.model, "generator.model")
    return load_model(run.config.generator.model_copy(update={"model": model}), checkpoint)


@torch.no_grad()
def plain_diffusers_films_alike(run: Finished) -> None:
    """The checkpoint, read by diffusers alone, films what retake films with it. For dense attention."""
    from diffusers import WanPipeline, WanTransformer3DModel

    checkpoint = run.folder("update") / "checkpoint"
    ours = load_tiny(run, checkpoint)
    noise = noise_for([7], ours.latent_shape(17, 32, 32))
    caption = "a red ring moves left"
    want = sample(ours, ours.encode_prompts([caption]), noise, SamplingConfig(num_steps=2))
    pipe = WanPipeline.from_pretrained(resolve_model(run.config.generator.model, "generator.model"))
    if run.config.update.lora is None:
        pipe.transformer = WanTransformer3DModel.from_pretrained(checkpoint / "transformer")
    else:
        pipe.load_lora_weights(str(checkpoint))
    pipe.set_progress_bar_config(disable=True)
    got = pipe(
        prompt=caption, height=32, width=32, num_frames=17, num_inference_steps=2, guidance_scale=1.0,
        latents=noise.clone(), max_sequence_length=8, output_type="latent",
    ).frames  # fmt: skip
    torch.testing.assert_close(want, got, rtol=0, atol=2e-5)


def test_realdpo_three_losers_share_a_real_winner_and_no_judge_decides(finished):
    run = finished("realdpo", "sample.fresh.num_prompts=3", "update.ema_every=1", "update.held_out_share=0")
    anchors = {a["anchor_id"]: a for a in run.table("prepare", "anchors")}
    takes = {t["take_id"]: t for t in run.table("sample", "takes")}
    groups = defaultdict(list)
    for p in run.pairs:
        assert p["source"] == "real" and p["weight"] == 1 and p["question_id"] is None
        assert p["winner_id"] == takes[p["loser_id"]]["anchor_id"]  # whose first frame the take began with
        anchor = anchors[p["winner_id"]]
        assert (anchor["part"], anchor["caption"]) == ("train", p["prompt"])
        groups[p["winner_id"]].append(p["loser_id"])
    assert [len(losers) for losers in groups.values()] == [3, 3, 3]
    assert run.table("label", "votes") == []
    rows = read_pairs(run.context("update"), load_tiny(run), run.pairs)
    settings = run.config.update
    assert [len(g) for g in rows.groups(range(9), settings.losers_per_winner)] == [3, 3, 3]
    # the control arm may make an anchor the loser; the first frame stays that of its take
    flipped = [{**p, "winner_id": p["loser_id"], "loser_id": p["winner_id"]} for p in run.pairs]
    context, files = run.context("update"), clip_paths(run.context("update"), "prepare", "sample")
    assert _first_frames(context, flipped, files) == _first_frames(context, run.pairs, files)
    assert run.steps()[0]["preference_loss"] == pytest.approx(np.log(2), abs=1e-6)
    plain_diffusers_films_alike(run)


def test_densedpo_signs_follow_the_segments_of_guided_pairs(finished):
    run = finished(
        "densedpo", "sample.guided.num_anchors=4", "sample.sampling.num_steps=4", "update.lora.rank=4",
    )  # fmt: skip
    assert run.pairs and {p["source"] for p in run.pairs} == {"guided"}
    takes = {t["take_id"]: t for t in run.table("sample", "takes")}
    segments = json.loads((run.folder("prepare") / "clip.json").read_text())["latent_segments"]
    assert segments == [0, 0, 0, 1, 1]
    overall = [v for v in run.table("label", "verdicts") if v["dimension"] == "overall"]
    said = {(frozenset((v["first_id"], v["second_id"])), v["segment"]): v for v in overall}
    for p in run.pairs:
        winner, loser = takes[p["winner_id"]], takes[p["loser_id"]]
        assert winner["anchor_id"] == loser["anchor_id"] and winner["eta"] == loser["eta"]
        assert 0.65 <= winner["eta"] <= 0.8
        assert np.mean(np.abs(p["signs"])) > 0.2
        for sign, segment in zip(p["signs"], segments, strict=True):
            v = said[frozenset((p["winner_id"], p["loser_id"])), segment]
            score = v["score"] if v["first_id"] == p["winner_id"] else 1 - v["score"]
            sure = v["mode"] != "tie" and v["certainty"] >= 0.75  # both orders say the same
            assert sign == (np.sign(score - 0.5) if sure else 0)
    assert any(len(set(p["signs"])) > 1 for p in run.pairs)  # a clip's label would make all frames alike
    assert {v["kind"] for v in overall} == {"segment"} and len(overall) == 8
    plain_diffusers_films_alike(run)


def test_dual_ipo_best_against_worst_with_both_likelihood_terms_and_a_judge_that_learned(finished):
    run = finished(
        "dual-ipo", *LEARNS, "sample.fresh.num_prompts=3", "label.max_take_pairs_per_prompt=6",
        "label.voting.num_ballots=1", "sample.sampling.num_steps=4",
    )  # fmt: skip
    takes = Counter(t["prompt_id"] for t in run.table("sample", "takes"))
    assert list(takes.values()) == [8, 8, 8]
    assert {p["source"] for p in run.pairs} == {"fresh"}
    assert max(Counter(p["prompt_id"] for p in run.pairs).values()) == 1  # one pair a prompt
    # that of highest and lowest mean score over what was asked about the prompt
    asked = [v for v in run.table("label", "verdicts") if v["dimension"] == "overall"]
    scores = defaultdict(list)
    for v in asked:
        scores[v["first_id"]].append(v["score"])
        scores[v["second_id"]].append(1 - v["score"])
    rank = {take: np.mean(s) for take, s in scores.items()}
    for p in run.pairs:
        gaps = [abs(rank[v["first_id"]] - rank[v["second_id"]]) for v in asked if v["prompt"] == p["prompt"]]
        assert abs(rank[p["winner_id"]] - rank[p["loser_id"]]) == pytest.approx(max(gaps))
    for row in run.steps():
        parts = run.config.update
        assert row["loss"] == pytest.approx(
            row["preference_loss"]
            + parts.winner_likelihood * row["winner_error"]
            + parts.real_likelihood * row["real_error"]
        )
    judge = json.loads((run.folder("train_judge") / "metrics.json").read_text())
    assert judge["num_sft_rows"] == 8 and judge["sft_loss"] > 0
    plain_diffusers_films_alike(run)


def test_huvidpo_people_decide_and_the_winners_first_frame_is_given(finished, tmp_path_factory):
    given = human_pairs(tmp_path_factory.mktemp("human") / "clips", ("left", "up"))
    run = finished(
        "huvidpo", *given, "data.categories=[left, right]", "update.held_out_share=0",
        "data.num_anchors={train: 6, calibrate: 6, gate: 6, report: 6}",
    )  # fmt: skip
    assert {a["category"] for a in run.table("prepare", "anchors")} == {"left", "right"}
    rows = {r["clip_A"]: r for r in run.table("prepare", "human_pairs")}
    assert {r["category"] for r in rows.values()} == {"left"}
    assert run.pairs and {p["source"] for p in run.pairs} == {"human"}
    assert all(p["weight"] == p["certainty"] == 1 for p in run.pairs)
    drops = run.drops()
    assert drops["human", "leaks_a_held_out_prompt"] > 0
    skips = json.loads((run.folder("prepare") / "skips.json").read_text())
    assert any("not in data.categories" in s["reason"] for s in skips)

    # the winner's own first frame is what the network is told of both clips
    model = load_tiny(run)
    pairs = read_pairs(run.context("update"), model, run.pairs)
    files = {r[f"clip_{s}"]: run.folder("prepare") / r[f"file_{s}"] for r in rows.values() for s in "AB"}
    for i, p in enumerate(run.pairs):
        frame = to_tensor(read_clip(files[p["winner_id"]])[0][:1])
        torch.testing.assert_close(pairs.condition([i])["held_frame"], model.encode(frame))
        torch.testing.assert_close(pairs.losers[[i]][0], read_latents(model, files[p["loser_id"]]))
    # and every clip that is filmed begins with the first frame of an anchor of its caption
    anchors = {a["anchor_id"]: a for a in run.table("prepare", "anchors")}
    takes = run.table("evaluate", "takes")
    assert takes
    for t in takes:
        assert anchors[t["anchor_id"]]["caption"] == t["prompt"]
        began = read_clip(run.folder("prepare") / anchors[t["anchor_id"]]["file"])[0][0]
        first = read_clip(run.folder("evaluate") / t["file"])[0][0]
        assert np.abs(first.astype(int) - began).mean() < 8
    # sparse attention is in force, and what is saved is an ordinary LoRA of its rank
    assert "Sparse" in type(model.transformer.blocks[0].attn1.processor).__name__
    weights = load_file(run.folder("update") / "checkpoint" / "pytorch_lora_weights.safetensors")
    assert {min(w.shape) for w in weights.values()} == {16}
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(resolve_model("embedded:tiny-wan", "generator.model"))
    pipe.load_lora_weights(str(run.folder("update") / "checkpoint"))
    assert pipe.get_list_adapters() == {"transformer": ["default_0"]}


def test_mixed_all_sources_meet_in_one_update_and_weigh_by_certainty(finished, tmp_path_factory):
    given = human_pairs(tmp_path_factory.mktemp("human") / "clips", tuple(world.DIRECTIONS))
    run = finished(
        "mixed", *LEARNS, *given, "sample.fresh={num_prompts: 4, takes_per_prompt: 4}",
        "sample.guided.num_anchors=4", "sample.sampling.num_steps=4", "label.voting.num_ballots=1",
        "update.held_out_share=0",
    )  # fmt: skip
    assert {p["source"] for p in run.pairs} == {"fresh", "guided", "real", "human"}
    calibrated = load(run.folder("judge_gate") / "calibrators.json")
    assert not {"take_take", "take_real", "segment"} & set(calibrated)  # so margins count as they are
    of = {s: getattr(run.config.pair.sources, s).weight for s in ("fresh", "guided", "real", "human")}
    for p in run.pairs:
        assert p["weight"] == pytest.approx(of[p["source"]] * p["certainty"])
    assert len({p["weight"] for p in run.pairs}) > 2
    drops = run.drops()
    assert drops["human", "tie"] == 1 and drops["human", "leaks_a_held_out_prompt"] > 0
    pairs = read_pairs(run.context("update"), load_tiny(run), run.pairs)
    assert pairs.weights.tolist() == pytest.approx([p["weight"] for p in run.pairs])
    assert "<html" in (run.root / "report.html").read_text()
    plain_diffusers_films_alike(run)
