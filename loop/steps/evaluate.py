"""evaluate: the generator films the report prompts with the same seeds every round, and is measured.

Nothing here is read by a training stage. The oracle of the embedded world marks clips from pixels; what
judges say is in loop/steps/judged_takes.py, and docs/measures.md says what each measure is and is not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from generator.clips import read_clip
from generator.models.base import VideoModel
from generator.road import read_latents
from loop.held_out import anchors_of, held_out_prompts
from loop.measure import measure
from loop.splits import join
from loop.stages import StageContext, derive_seed
from loop.steps import leakage
from loop.steps.common import clip_paths, load_generator, read_table, write_table
from loop.steps.conditions import condition_of
from loop.steps.judged_takes import CLEAR_DIFFERENCE, judge_takes
from loop.steps.metrics import METRICS, Rows
from loop.steps.sample import TAKES, Take, anchor_of, film
from loop.two_sample import TooFewClips, clip_features, two_sample_auc

_DRIFT_LEVELS = (0.25, 0.5, 0.75)


def run(ctx: StageContext) -> None:
    model = load_generator(ctx, ctx.inputs.get("generator"))
    takes = plan(ctx)
    film(ctx, model, takes, clip_paths(ctx, "prepare"))
    write_table(ctx.out / "takes.parquet", ({**vars(t), "file": t.file} for t in takes), TAKES)
    rows = Rows(ctx)
    scores, features = _score(ctx, takes)
    for name in scores[0]:
        rows.add_by_category(name, [s[name] for s in scores], takes)
    table = pa.Table.from_pylist([{"take_id": t.take_id, **s} for t, s in zip(takes, scores, strict=True)])
    write_table(ctx.out / "scores.parquet", table.to_pylist(), table.schema)
    _against_anchors(ctx, takes, features, rows)
    if "generator" in ctx.inputs:
        drift = _drift(ctx, model, load_generator(ctx, None), takes)
        rows.add("drift_from_base", drift, [t.prompt_id for t in takes])
    leakage.probe(ctx, model, rows.add_interval)
    del model
    judge_takes(ctx, takes, [s.get("oracle_total") for s in scores], rows)
    _pair_precision(ctx, rows)
    write_table(ctx.out / "metrics.parquet", rows.rows, METRICS)


def plan(ctx: StageContext) -> list[Take]:
    """The same prompts and seeds in every round of a campaign."""
    takes = []
    anchors = anchors_of(ctx, ctx.config.evaluate.part)
    for p in held_out_prompts(ctx, ctx.config.evaluate.part):
        for n in range(ctx.config.evaluate.num_seeds):
            name = f"{p['prompt_id']}-{n}"
            seed = derive_seed(ctx.config.seed, "evaluate", name)
            anchor = anchor_of(ctx.config, anchors, p, 1, n)
            takes.append(Take(name, "fresh", p["prompt_id"], p["text"], p["category"], seed, anchor))
    return takes


def oracle_marks(ctx: StageContext, frames: np.ndarray, caption: str) -> dict[str, float]:
    """The embedded world's marks, or nothing for real clips, which no oracle knows."""
    if ctx.config.data.anchors != "embedded":
        return {}
    from loop.embedded import oracle

    return {f"oracle_{k}": v for k, v in oracle.score(frames, caption).items()}


def _score(ctx: StageContext, takes: Sequence[Take]) -> tuple[list[dict[str, float]], np.ndarray]:
    """Every take's marks and measures, and its features for the two-sample test [num_takes, F]."""
    scores, features = [], []
    for t in takes:
        frames, _ = read_clip(ctx.out / t.file)
        measured = measure(frames)
        scores.append({**oracle_marks(ctx, frames, t.prompt), **measured})
        features.append(clip_features(frames, measured))
    return scores, np.stack(features)


def _against_anchors(ctx: StageContext, takes: Sequence[Take], features: np.ndarray, rows: Rows) -> None:
    """The same measures on held-out real clips, which the curves are to reach, and how far takes differ."""
    folder = ctx.inputs["prepare"]
    anchors = anchors_of(ctx, ctx.config.evaluate.part)
    found: dict[str, list[float]] = defaultdict(list)
    real = []
    for a in anchors:
        frames, _ = read_clip(folder / a["file"])
        measured = measure(frames)
        for name, value in {**oracle_marks(ctx, frames, a["caption"]), **measured}.items():
            found[name].append(value)
        real.append(clip_features(frames, measured))
    for name, values in found.items():
        rows.add(f"real_{name}", values, [a["source"] for a in anchors])
    # clips of one source or one caption are one group, as in the split
    numbers = [str(n) for n in join([(a["source"], a["caption"]) for a in anchors])]
    group_of = dict(zip((a["caption"] for a in anchors), numbers, strict=True))
    try:
        found_auc = two_sample_auc(np.stack(real), features, numbers, [group_of[t.prompt] for t in takes])
    except TooFewClips as error:
        ctx.log.info("no two_sample_auc: %s", error)
    else:
        rows.add_interval("two_sample_auc", found_auc)


@torch.no_grad()
def _drift(ctx: StageContext, model: VideoModel, base: VideoModel, takes: Sequence[Take]) -> list[float]:
    """E‖v_θ − v_base‖² per value, on the stored takes at three noise levels."""
    found, anchors = [], clip_paths(ctx, "prepare")
    for t in takes:
        x = read_latents(model, ctx.out / t.file)[None]
        eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(t.seed))
        level = model.levels_of(torch.tensor(_DRIFT_LEVELS))
        n = len(level)
        noisy = model.parametrisation.noise(x.expand(n, -1, -1, -1, -1), eps.expand(n, -1, -1, -1, -1), level)
        frame = anchors[t.anchor_id] if t.anchor_id else None
        condition = condition_of(model, [t.prompt], [frame], ctx.config.data.clip.num_frames).repeat(n)
        difference = model.predict(noisy.to(model.device), level, condition) - base.predict(
            noisy.to(base.device), level, condition
        )
        found.append(difference.float().pow(2).mean().item())
    return found


def _pair_precision(ctx: StageContext, rows: Rows) -> None:
    """The share of this round's take pairs whose winner the oracle marks higher. Reported, never used."""
    if "pair" not in ctx.inputs or ctx.config.data.anchors != "embedded":
        return
    takes = {t["take_id"]: t for t in read_table(ctx.inputs["sample"] / "takes.parquet")}

    def total(name: str) -> float:
        take = takes[name]
        return oracle_marks(ctx, read_clip(ctx.inputs["sample"] / take["file"])[0], take["prompt"])[
            "oracle_total"
        ]

    for source in ("fresh", "guided"):
        right, groups = [], []
        for p in read_table(ctx.inputs["pair"] / "pairs.parquet"):
            if p["source"] == source:
                difference = total(p["winner_id"]) - total(p["loser_id"])
                if abs(difference) > CLEAR_DIFFERENCE:
                    right.append(float(difference > 0))
                    groups.append(p["prompt_id"])
        if right:
            rows.add(f"pair_precision_{source}", right, groups)
