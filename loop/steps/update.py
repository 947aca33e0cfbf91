"""update: the generator learns from the round's preferences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from generator.config import UpdateConfig
from generator.data import AnchorData, PairData
from generator.latents import StoredLatents, store_latents
from generator.models.base import VideoModel
from generator.ranks import Ranks
from generator.road import read_latents
from generator.train import update
from loop import distributed
from loop.held_out import training_anchors
from loop.stages import StageContext, derive_seed
from loop.steps.common import clip_paths, iter_table, load_generator, read_table, write_json
from loop.steps.conditions import shared_conditions
from loop.stopping import finishing_steps

_COLUMNS = ("pair_id", "prompt_id", "prompt", "winner_id", "loser_id", "signs", "weight")  # of pairs.parquet


def run(ctx: StageContext) -> None:
    config = _adapted(ctx, ctx.config.update.in_round(ctx.round))
    sharding = distributed.sharding(config)
    Ranks().check_shares(config)
    if sharding is not None:
        ctx.log.info("the processes share the weights: %s", sharding)
    model = load_generator(ctx, None)
    parent = ctx.inputs.get("generator")
    rows = read_table(ctx.inputs["pair"] / "pairs.parquet", _COLUMNS)
    if config.needs_pairs and not any(any(r["signs"]) for r in rows):
        _keep_parent(ctx, model, parent)
        return
    pairs = read_pairs(ctx, model, rows) if config.needs_pairs else None
    wants_anchors = config.method == "supervised" or config.real_likelihood > 0
    anchors = _anchors(ctx, model) if wants_anchors else None
    model.release_encoders()
    ctx.progress.start(config.num_steps, "steps")

    def on_step(row: dict) -> None:
        if row["split"] == "train":
            ctx.progress.advance()
        ctx.log.info("%s", row)

    # several processes save together, so one that is asked to stop takes the others along
    with finishing_steps(Ranks().any) as stopping:
        chosen = update(
            model,
            pairs,
            anchors,
            config,
            parent=parent / "checkpoint" if parent else None,
            out=ctx.out,
            seed=ctx.seed,
            on_step=on_step,
            warn=ctx.log.warning,
            sharding=sharding,
            stopping=stopping,
        )
    if distributed.rank() == 0:
        write_json(ctx.out / "metrics.json", {"num_pairs": len(pairs.ids) if pairs else 0, **chosen})


def _adapted(ctx: StageContext, config: UpdateConfig) -> UpdateConfig:
    """The settings after what the gate of the round before said (gate.adapt)."""
    if "earlier_gate" not in ctx.inputs:
        return config
    gate = json.loads((ctx.inputs["earlier_gate"] / "gate.json").read_text(encoding="utf-8"))
    factor = gate.get("adapt", {}).get("learning_rate", 1.0)
    if factor == 1:
        return config
    rate = factor * config.learning_rate
    ctx.log.info(
        "%d rollbacks since the last promotion: learning rate %g × %g", gate["rollbacks"], factor,
        config.learning_rate,
    )  # fmt: skip
    return config.model_copy(update={"learning_rate": rate})


def _keep_parent(ctx: StageContext, model: VideoModel, parent: Path | None) -> None:
    """A round without a decided pair has nothing to teach; the campaign goes on with the same weights."""
    if distributed.rank() != 0:
        return
    ctx.log.warning(
        "no preference pairs this round: the generator stays as it is. Lower certainty.min_margin, "
        "certainty.min_probability or pair.min_rank_gap, or sample more takes"
    )
    model.prepare_training(
        ctx.config.update.lora,
        parent / "checkpoint" if parent else None,
        ctx.config.update.reference,
        ctx.seed,
    )
    model.save_checkpoint(ctx.out / "checkpoint")
    write_json(ctx.out / "metrics.json", {"num_pairs": 0, "skipped": "no preference pairs"})


def read_pairs(ctx: StageContext, model: VideoModel, rows: list[dict[str, Any]]) -> PairData:
    """The round's preferences with the latents of their clips."""
    paths = clip_paths(ctx, "prepare", "sample")
    names = sorted({r["winner_id"] for r in rows} | {r["loser_id"] for r in rows})
    latents, clip_of = _store(ctx, model, "pairs", [paths[name] for name in names]), _number(names)
    keys = [(r["prompt"], frame) for r, frame in zip(rows, _first_frames(ctx, rows, paths), strict=True)]
    conditions, number = shared_conditions(model, keys, ctx.config.data.clip.num_frames)
    return PairData(
        ids=[r["pair_id"] for r in rows],
        prompt_ids=[r["prompt_id"] for r in rows],
        winners=latents.rows([clip_of[r["winner_id"]] for r in rows]),
        losers=latents.rows([clip_of[r["loser_id"]] for r in rows]),
        conditions=conditions,
        condition_rows=[number[key] for key in keys],
        signs=torch.tensor([r["signs"] for r in rows], dtype=torch.int8),
        weights=torch.tensor([r["weight"] for r in rows], dtype=torch.float32),
        winner_ids=[r["winner_id"] for r in rows],
    )


def _first_frames(ctx: StageContext, rows: list[dict[str, Any]], paths: dict[str, Path]) -> list[Path | None]:
    """The clip whose first frame is given with each pair, None for all without sample.first_frame.

    It is the anchor that the pair's takes began with; a pair that people compared has no such anchor, and
    its winner's own first frame is given with both clips.
    """
    if not ctx.config.sample.first_frame:
        return [None] * len(rows)
    takes = iter_table(ctx.inputs["sample"] / "takes.parquet", ("take_id", "anchor_id"))
    began = {t["take_id"]: paths[t["anchor_id"]] for t in takes}
    # either side may be an anchor: by coin in the control arm
    return [began.get(r["loser_id"]) or began.get(r["winner_id"]) or paths[r["winner_id"]] for r in rows]


def _anchors(ctx: StageContext, model: VideoModel) -> AnchorData:
    rows = training_anchors(ctx)
    rng = np.random.default_rng(derive_seed(ctx.config.seed, "real", ctx.round))
    most = ctx.config.update.num_steps * ctx.config.update.anchors_per_step
    rows = [rows[i] for i in sorted(rng.permutation(len(rows))[:most])]
    latents = _store(ctx, model, "anchors", [ctx.inputs["prepare"] / row["file"] for row in rows])
    begins = ctx.config.sample.first_frame
    keys = [(r["caption"], ctx.inputs["prepare"] / r["file"] if begins else None) for r in rows]
    conditions, number = shared_conditions(model, keys, ctx.config.data.clip.num_frames)
    return AnchorData(latents, conditions, [number[key] for key in keys])


def _store(ctx: StageContext, model: VideoModel, what: str, clips: list[Path]) -> StoredLatents:
    """The clips' latents, a row a clip, in files that go with the scratch folder."""
    clip = ctx.config.data.clip
    shape = model.latent_shape(clip.num_frames, clip.height, clip.width)
    return store_latents(
        clips,
        lambda path: _of_shape(read_latents(model, path), shape, path),
        ctx.scratch / what,
        shape,
        lambda num: ctx.progress.start(num, "clips"),
        ctx.progress.advance,
    )


def _number(names: Sequence[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


def _of_shape(latents: torch.Tensor, shape: tuple[int, ...], path: Path) -> torch.Tensor:
    """`latents` if they are of `shape`. Raises ValueError for a clip of another length or size."""
    if tuple(latents.shape) != shape:
        raise ValueError(
            f"{path}: its latents are {list(latents.shape)}, but clips of data.clip have {list(shape)}; all "
            "clips of a campaign have one length and size: restore the file, or start in another --dir"
        )
    return latents
