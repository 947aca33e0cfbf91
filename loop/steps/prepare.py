"""prepare: anchors become stored clips with a split part, captions prompts; users' pairs are stored too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from generator.models.base import VideoModel
from loop.data import load_anchors, load_human_pairs, prompt_id_of, read_prompts
from loop.human_pairs import HumanPair, clip_id_of
from loop.metadata import Skip
from loop.stages import StageContext
from loop.steps.common import load_generator, write_json, write_table
from loop.steps.judging import judge_config
from loop.steps.seed import read_seed, store_seed
from loop.steps.stored import digest, store_clip, store_clips

ANCHORS = pa.schema(
    [(n, pa.string()) for n in ("anchor_id", "file", "caption", "source", "category", "part", "sha256")]
)
PROMPTS = pa.schema([(n, pa.string()) for n in ("prompt_id", "text", "category", "part")])
HUMAN_PAIRS = pa.schema(
    [
        (n, pa.string())
        for n in (
            "pair_id", "prompt_id", "prompt", "category", "label", "clip_A", "clip_B", "file_A", "file_B",
            "sha256_A", "sha256_B",
        )
    ]
)  # fmt: skip


def run(ctx: StageContext) -> None:
    data = ctx.config.data
    clip = data.clip
    compared, unusable, categories = load_human_pairs(data)
    seed = read_seed(ctx)
    anchors, skips = load_anchors(data, ctx.scratch / "anchors", ctx.config.seed, categories)
    prompts = read_prompts(anchors, data.prompts, data.categories)
    skips += unusable
    for skip in skips:
        ctx.log.warning("skipped %s: %s", skip.file, skip.reason)
    if skips:
        ctx.log.warning("%d of %d were skipped", len(skips), len(skips) + len(anchors) + len(compared))
    model = load_generator(ctx, None)
    model.latent_shape(clip.num_frames, clip.height, clip.width)  # sizes that the model cannot take end here
    _check_what_later_stages_load(ctx, model)
    (ctx.out / "clips").mkdir(exist_ok=True)
    ctx.progress.start(len(anchors), "anchors")
    rows = []
    for anchor in anchors:
        file = f"clips/{anchor.id}.mp4"
        if not (ctx.out / file).exists():
            store_clip(model, clip, anchor.path, ctx.out / file)
        rows.append(
            {
                "anchor_id": anchor.id,
                "file": file,
                "caption": anchor.caption,
                "source": anchor.source,
                "category": anchor.category,
                "part": anchor.part,
                "sha256": digest(ctx.out / file),
            }
        )
        ctx.progress.advance()
    write_table(ctx.out / "anchors.parquet", rows, ANCHORS)
    write_table(
        ctx.out / "prompts.parquet",
        [{"prompt_id": p.id, "text": p.text, "category": p.category, "part": p.part} for p in prompts],
        PROMPTS,
    )
    if data.human_pairs is not None:
        skips += _store_human_pairs(ctx, model, compared, Path(data.human_pairs).expanduser().parent)
    if seed:
        skips += store_seed(ctx, model, seed, rows)
    frames_per_segment = max(1, round(data.segment_seconds * clip.fps))
    write_json(
        ctx.out / "clip.json",
        {
            "frames_per_segment": frames_per_segment,
            "latent_segments": model.latent_segments(clip.num_frames, frames_per_segment),
        },
    )
    write_json(ctx.out / "skips.json", [{"file": s.file, "reason": s.reason} for s in skips])


def _check_what_later_stages_load(ctx: StageContext, model: VideoModel) -> None:
    """Raises ValueError now for what would otherwise fail hours later, in the middle of the first round."""
    lora = ctx.config.update.lora
    if ctx.config.rounds and lora is not None:
        model.check_lora_targets(lora)
    if ctx.config.judge.type == "transformers":
        from reward.judges.transformers import check_model

        check_model(judge_config(ctx, None))


def _store_human_pairs(
    ctx: StageContext, model: VideoModel, pairs: Sequence[HumanPair], folder: Path
) -> list[Skip]:
    """Stores both clips of every pair by the anchors' road, and human_pairs.parquet.

    Returns a Skip for each pair of which a clip cannot be used.
    """
    (ctx.out / "human").mkdir(exist_ok=True)
    wanted = {
        (path, f"human/{clip_id_of(path)}.mp4") for pair in pairs for path in (pair.path_a, pair.path_b)
    }
    stored, faults = store_clips(ctx, model, wanted, folder, "clips that people compared")
    rows, skips = [], []
    for pair in pairs:
        fault = next((path for path in (pair.path_a, pair.path_b) if path in faults), None)
        if fault is not None:
            skips.append(Skip(fault, f"{pair.where}: {faults[fault]}"))
            ctx.log.warning("skipped %s: %s", skips[-1].file, skips[-1].reason)
            continue
        row = {
            "pair_id": pair.id,
            "prompt_id": prompt_id_of(pair.prompt),
            "prompt": pair.prompt,
            "category": pair.category,
            "label": pair.label,
        }
        for side, path in (("A", pair.path_a), ("B", pair.path_b)):
            row[f"clip_{side}"], row[f"file_{side}"] = clip_id_of(path), stored[path]
            row[f"sha256_{side}"] = digest(ctx.out / stored[path])
        rows.append(row)
    write_table(ctx.out / "human_pairs.parquet", rows, HUMAN_PAIRS)
    return skips
