"""How well a line tells this round's takes from the anchors: logged each round, read by no decision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from generator.clips import read_clip
from generator.models.base import VideoModel
from generator.probe import held_out_scores, latent_statistics, num_folds, pixel_statistics
from generator.road import read_latents
from loop.held_out import training_anchors
from loop.stages import StageContext
from loop.statistics import Interval, widened_for_folds
from loop.steps.common import read_table

T = TypeVar("T")

_MOST_CLIPS = 48  # of each kind


def probe(ctx: StageContext, model: VideoModel, add: Callable[[str, Interval], None]) -> None:
    """Adds probe_auc_pixels and probe_auc_latents: training anchors against the round's fresh takes.

    Nothing is added where too few captions have clips of both kinds.
    """
    if "sample" not in ctx.inputs:
        return
    anchors = training_anchors(ctx)
    captions = {a["caption"] for a in anchors}
    filmed = read_table(ctx.inputs["sample"] / "takes.parquet")
    takes = [t for t in filmed if t["kind"] == "fresh" and t["prompt"] in captions]
    real = [(ctx.inputs["prepare"] / a["file"], a["caption"]) for a in _spread(anchors)]
    made = [(ctx.inputs["sample"] / t["file"], t["prompt"]) for t in _spread(takes)]
    groups = [caption for _, caption in (*real, *made)]
    if len({c for _, c in real} & {c for _, c in made}) < 2:
        ctx.log.info("no leakage probe: fewer than two captions have both anchors and takes")
        return
    pixels = np.stack([pixel_statistics(read_clip(path)[0]) for path, _ in (*real, *made)])
    latents = np.stack([latent_statistics(read_latents(model, path)) for path, _ in (*real, *made)])
    is_real = np.arange(len(groups)) < len(real)
    for name, features in (("pixels", pixels), ("latents", latents)):
        add(f"probe_auc_{name}", auc(held_out_scores(features, is_real, groups), is_real, groups))


def auc(scores: np.ndarray, is_real: np.ndarray, groups: list[str], num_samples: int = 500) -> Interval:
    """Area under the ROC curve of `held_out_scores`, with a 95 % interval over groups."""
    from sklearn.metrics import roc_auc_score

    names = sorted(set(groups))
    rows = {name: [i for i, g in enumerate(groups) if g == name] for name in names}
    rng = np.random.default_rng(0)
    found = []
    for _ in range(num_samples):
        drawn = [i for k in rng.integers(len(names), size=len(names)) for i in rows[names[k]]]
        if 0 < is_real[drawn].sum() < len(drawn):
            found.append(roc_auc_score(is_real[drawn], scores[drawn]))
    low, high = np.quantile(found, [0.025, 0.975])
    both = {g for g, real in zip(groups, is_real, strict=True) if real}
    both &= {g for g, real in zip(groups, is_real, strict=True) if not real}
    plain = Interval(float(roc_auc_score(is_real, scores)), float(low), float(high), len(groups))
    return widened_for_folds(plain, len(both), num_folds(len(both)))


def _spread(rows: Sequence[T]) -> list[T]:
    num = min(len(rows), _MOST_CLIPS)
    return [rows[i * len(rows) // num] for i in range(num)]
