"""At which noise levels do pairs teach? Gradients of the preference term by level and source.

    python benchmarks/noise_levels.py RUN [--round 1] [--pairs 24] [--bins 8]

For pairs of a finished round, from the weights that its update started with: the root mean square of a
single pair's gradient in equal parts of the configured distribution of levels. `ratio` is the second moment
that importance sampling (levels drawn in proportion to these, losses weighted back) would leave of the plain
one's: 1 = nothing to gain, .5 = half as many pairs would give a gradient as certain. Prints one JSON row a
source.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import tempfile
from pathlib import Path

import torch
from rich.console import Console

from generator.config import UpdateConfig
from generator.data import PairData
from generator.draws import Draw, mix
from generator.models.base import VideoModel
from generator.parametrisation import sigma_of
from generator.reference_errors import ReferenceErrors
from generator.step import objective, pair_errors
from loop.config import CampaignConfig
from loop.progress import LineProgress
from loop.stages import StageContext
from loop.steps.common import load_generator, read_table
from loop.steps.update import read_pairs


def second_moments(
    model: VideoModel,
    parameters: list[torch.nn.Parameter],
    pairs: PairData,
    rows: list[int],
    config: UpdateConfig,
    bins: int,
) -> list[float]:
    """E‖g‖² of one pair's preference gradient in each of `bins` equal parts of the levels' quantiles."""
    shift = model.shift_for(tuple(pairs.winners.shape[1:]))
    quantiles = torch.linspace(0, 1, bins + 1)
    edges = sigma_of(quantiles, config.timesteps, shift, *config.sigma_range).tolist()
    found = []
    for low, high in itertools.pairwise(edges):
        here = config.model_copy(update={"sigma_range": (low, high)})
        norms = []
        for i in rows:
            fresh = ReferenceErrors(0, ())
            errors = pair_errors(model, pairs, [[i]], [Draw(i, 0)], here, mix(0, i), fresh)
            loss = objective(errors, pairs.signs[[i]], pairs.weights[[i]], here)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            norms.append(sum(float(g.square().sum()) for g in gradients if g is not None))
        found.append(sum(norms) / len(norms))
    return found


def ratio_of(moments: list[float]) -> float:
    """Second moment under the best density over that under the plain one: (mean √m)² / mean m."""
    roots = [m**0.5 for m in moments]
    return (sum(roots) / len(roots)) ** 2 / (sum(moments) / len(moments))


def examine(run: Path, number: int, num_pairs: int, bins: int) -> None:
    config = CampaignConfig.model_validate_json((run / "resolved.json").read_text())
    folder = run / f"round-{number:03d}"
    inputs = {"prepare": run / "round-000" / "prepare", "sample": folder / "sample", "pair": folder / "pair"}
    with tempfile.TemporaryDirectory() as scratch:
        progress = LineProgress(run.name, Console(stderr=True))
        ctx = StageContext(config, number, inputs, Path(scratch), 0, progress, logging.getLogger("retake"))
        model = load_generator(ctx, None)
        rows = read_table(inputs["pair"] / "pairs.parquet")
        pairs = read_pairs(ctx, model, rows)
        before = run / f"round-{number - 1:03d}" / "update" / "checkpoint"
        parent = before if before.exists() else None
        parameters = model.prepare_training(config.update.lora, parent, config.update.reference, 0)
        for source in sorted({r["source"] for r in rows}):
            mine = [i for i, r in enumerate(rows) if r["source"] == source and any(r["signs"])]
            mine = mine[:: max(1, len(mine) // num_pairs)][:num_pairs]
            moments = second_moments(model, parameters, pairs, mine, config.update, bins)
            row = {
                "source": source,
                "pairs": len(mine),
                "gradient by level": [round(m**0.5, 3) for m in moments],
                "ratio": round(ratio_of(moments), 3),
            }
            print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--round", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--bins", type=int, default=8)
    options = parser.parse_args()
    examine(options.run, options.round, options.pairs, options.bins)


if __name__ == "__main__":
    main()
