"""prepare: anchors become stored clips with a split part, captions become prompts."""

from __future__ import annotations

import hashlib

import pyarrow as pa

from generator.clips import read_conformed
from generator.road import store_real
from loop.data import load_anchors, read_prompts
from loop.stages import StageContext
from loop.steps.common import load_generator, write_json, write_table

ANCHORS = pa.schema(
    [(n, pa.string()) for n in ("anchor_id", "file", "caption", "source", "category", "part", "sha256")]
)
PROMPTS = pa.schema([(n, pa.string()) for n in ("prompt_id", "text", "category", "part")])


def run(ctx: StageContext) -> None:
    data = ctx.config.data
    clip = data.clip
    anchors, skips = load_anchors(data, ctx.scratch / "anchors", ctx.config.seed)
    for skip in skips:
        ctx.log.warning("skipped %s: %s", skip.file, skip.reason)
    model = load_generator(ctx, None)
    model.latent_shape(clip.num_frames, clip.height, clip.width)  # sizes that the model cannot take end here
    (ctx.out / "clips").mkdir(exist_ok=True)
    ctx.progress.start(len(anchors), "anchors")
    rows = []
    for anchor in anchors:
        file = f"clips/{anchor.id}.mp4"
        if not (ctx.out / file).exists():
            frames = read_conformed(
                anchor.path,
                num_frames=clip.num_frames,
                height=clip.height,
                width=clip.width,
                target_fps=clip.fps,
            )
            store_real(model, frames, ctx.out / file, clip.fps)
        digest = hashlib.sha256((ctx.out / file).read_bytes()).hexdigest()
        rows.append(
            {
                "anchor_id": anchor.id,
                "file": file,
                "caption": anchor.caption,
                "source": anchor.source,
                "category": anchor.category,
                "part": anchor.part,
                "sha256": digest,
            }
        )
        ctx.progress.advance()
    write_table(ctx.out / "anchors.parquet", rows, ANCHORS)
    prompts = read_prompts(anchors, data.prompts)
    write_table(
        ctx.out / "prompts.parquet",
        [{"prompt_id": p.id, "text": p.text, "category": p.category, "part": p.part} for p in prompts],
        PROMPTS,
    )
    frames_per_segment = max(1, round(data.segment_seconds * clip.fps))
    write_json(
        ctx.out / "clip.json",
        {
            "frames_per_segment": frames_per_segment,
            "latent_segments": model.latent_segments(clip.num_frames, frames_per_segment),
        },
    )
    write_json(ctx.out / "skips.json", [{"file": s.file, "reason": s.reason} for s in skips])
