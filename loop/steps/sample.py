"""sample: the generator films takes. Fresh takes start from noise, guided ones from a corrupted anchor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from generator.models.base import VideoModel
from generator.road import read_latents, store_latents
from generator.sampling import noise_for, sample
from loop.config import CampaignConfig
from loop.held_out import (
    AnyAnchor,
    AnyPrompt,
    TrainingAnchor,
    TrainingPrompt,
    training_anchors,
    training_prompts,
)
from loop.stages import StageContext, derive_seed
from loop.steps.common import iter_table, load_generator, neighbours, write_table
from loop.steps.conditions import condition_of

T = TypeVar("T")

TAKES = pa.schema(
    [
        ("take_id", pa.string()),
        ("kind", pa.string()),
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("category", pa.string()),
        ("file", pa.string()),
        ("seed", pa.int64()),
        ("anchor_id", pa.string()),
        ("eta", pa.float64()),
        ("pair_index", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Take:
    """One clip to film. A guided take has an anchor and an η, one with a given first frame an anchor."""

    take_id: str
    kind: str
    prompt_id: str
    prompt: str
    category: str
    seed: int
    anchor_id: str | None = None
    eta: float | None = None
    pair_index: int | None = None

    @property
    def file(self) -> str:
        return f"clips/{self.take_id}.mp4"


def run(ctx: StageContext) -> None:
    model = load_generator(ctx, ctx.inputs.get("generator"))
    anchors, prompts = training_anchors(ctx), training_prompts(ctx)
    takes = plan_takes(ctx.config, ctx.round, prompts, anchors)
    _warn_of_too_few(ctx, prompts, anchors)
    files = {a["anchor_id"]: ctx.inputs["prepare"] / a["file"] for a in anchors}
    film(ctx, model, takes, files)
    write_table(ctx.out / "takes.parquet", ({**vars(t), "file": t.file} for t in takes), TAKES)


def _warn_of_too_few(
    ctx: StageContext, prompts: Sequence[TrainingPrompt], anchors: Sequence[TrainingAnchor]
) -> None:
    settings = ctx.config.sample
    usable = with_anchors(ctx.config, prompts, anchors)
    wanted = (
        ("fresh.num_prompts", settings.fresh.num_prompts, len(usable)),
        ("guided.num_anchors", settings.guided.num_anchors, len(anchors)),
    )
    for key, num, have in wanted:
        if num > have:
            ctx.log.warning(
                "sample.%s is %d, but the train part has %d: all of them are used", key, num, have
            )


def film(
    ctx: StageContext,
    model: VideoModel,
    takes: Sequence[Take] | TakePlan,
    anchor_files: dict[str, Path],
    folder: str = "clips",
) -> None:
    """Samples and stores every take that a killed attempt has not stored yet, a shard at a time.

    `folder` replaces the takes' own one, for a stage that films the same takes twice.
    """
    (ctx.out / folder).mkdir(exist_ok=True)
    ctx.progress.start(len(takes), "clips")
    for shard in _shards(takes, ctx.config.sample.shard_size):
        paths = [ctx.out / folder / f"{t.take_id}.mp4" for t in shard]
        if not all(p.exists() for p in paths):
            _film_shard(ctx.config, model, shard, paths, anchor_files)
        ctx.progress.advance(len(shard))


def _film_shard(
    config: CampaignConfig,
    model: VideoModel,
    shard: list[Take],
    paths: list[Path],
    anchor_files: dict[str, Path],
) -> None:
    clip = config.data.clip
    seeds = [t.seed for t in shard]
    noise = noise_for(seeds, model.latent_shape(clip.num_frames, clip.height, clip.width))
    frames = [_first_frame(config, t, anchor_files) for t in shard]
    condition = condition_of(model, [t.prompt for t in shard], frames, clip.num_frames)
    sampling = config.sample.sampling
    negative = model.encode_prompts([""]) if sampling.guidance_scale > 1 else None
    start, eta = None, shard[0].eta
    if eta is not None:
        import torch

        start = torch.stack([read_latents(model, anchor_files[t.anchor_id or ""]) for t in shard])
    latents = sample(
        model, condition, noise, sampling, anchors=start, eta=eta, negative=negative, seeds=seeds
    )
    for row, path in zip(latents, paths, strict=True):
        store_latents(model, row, path, clip.fps)


def _first_frame(config: CampaignConfig, take: Take, anchor_files: dict[str, Path]) -> Path | None:
    if not config.sample.first_frame:
        return None
    assert take.anchor_id is not None, "a take with a given first frame has an anchor"
    return anchor_files[take.anchor_id]


def anchor_of(
    config: CampaignConfig,
    anchors: Sequence[AnyAnchor],
    prompt: AnyPrompt,
    round_number: int,
    number: int = 0,
) -> str | None:
    """The anchor whose first frame takes of a prompt begin with in a round; None where that is not asked for.

    Takes of one prompt share it, so that they differ in what follows; `number` > 0 gives others, in turn.
    """
    if not config.sample.first_frame:
        return None
    own = [a for a in anchors if a["caption"] == prompt["text"]]
    order = draw(own, len(own), round_number, config.seed, f"first frame {prompt['prompt_id']}")
    return order[number % len(order)]["anchor_id"]


def with_anchors(
    config: CampaignConfig, prompts: Sequence[TrainingPrompt], anchors: Sequence[TrainingAnchor]
) -> list[TrainingPrompt]:
    """The prompts that can be filmed: with sample.first_frame those that an anchor has for a caption."""
    captions = {a["caption"] for a in anchors}
    return [p for p in prompts if not config.sample.first_frame or p["text"] in captions]


@dataclass(frozen=True)
class TakePlan:
    """What a round films, in order: prompts and anchors are drawn, a Take is made when it is asked for.

    fresh: prompts, each with the anchor that its takes begin with (sample.first_frame) or None; guided:
    anchors with their η and their prompt's id.
    """

    config: CampaignConfig
    round: int
    fresh: list[tuple[TrainingPrompt, str | None]]
    guided: list[tuple[TrainingAnchor, float, str]]

    def __len__(self) -> int:
        return len(self.fresh) * self.config.sample.fresh.takes_per_prompt + len(self.guided) * 2

    def __iter__(self) -> Iterator[Take]:
        for p, anchor in self.fresh:
            for n in range(self.config.sample.fresh.takes_per_prompt):
                name = f"r{self.round:03d}-fresh-{p['prompt_id']}-{n}"
                yield Take(name, "fresh", p["prompt_id"], p["text"], p["category"], self._seed(name), anchor)
        for a, eta, prompt_id in self.guided:
            for n in range(2):
                name = f"r{self.round:03d}-guided-{a['anchor_id']}-{n}"
                yield Take(
                    name, "guided", prompt_id, a["caption"], a["category"], self._seed(name),
                    a["anchor_id"], eta, n,
                )  # fmt: skip

    def _seed(self, name: str) -> int:
        return derive_seed(self.config.seed, "take", name)


def plan_takes(
    config: CampaignConfig,
    round_number: int,
    prompts: Sequence[TrainingPrompt],
    anchors: Sequence[TrainingAnchor],
) -> TakePlan:
    """What to film this round.

    Prompts are drawn without replacement from a seeded order that goes on from round to round. Both takes of
    a guided pair share one η: a different one on each side is a shortcut that the policy learns (DenseDPO,
    section 4.1). Takes of one prompt follow each other, and so do those of one anchor.
    """
    usable = with_anchors(config, prompts, anchors)
    captioned: dict[str, list[TrainingAnchor]] = defaultdict(list)
    for anchor in anchors:
        captioned[anchor["caption"]].append(anchor)
    drawn = draw(usable, config.sample.fresh.num_prompts, round_number, config.seed, "prompts")
    fresh = [(p, anchor_of(config, captioned[p["text"]], p, round_number)) for p in drawn]
    by_text = {p["text"]: p["prompt_id"] for p in prompts}
    guided = []
    for a in draw(anchors, config.sample.guided.num_anchors, round_number, config.seed, "anchors"):
        rng = np.random.default_rng(derive_seed(config.seed, "eta", round_number, a["anchor_id"]))
        eta = round(float(rng.uniform(*config.sample.guided.eta)), 4)
        guided.append((a, eta, by_text[a["caption"]]))
    return TakePlan(config, round_number, fresh, guided)


def draw(rows: Sequence[T], num: int, round_number: int, seed: int, what: str) -> list[T]:
    """The round's share of a seeded order that goes on from round to round: at most `num` rows, none twice.

    Every row comes once before any comes again; a round that needs the start of the next order takes first
    the rows that it does not have yet.
    """
    num = min(num, len(rows))
    left: list[int] = []
    epoch = 0
    for _ in range(round_number):
        picked, left = left[:num], left[num:]
        if len(picked) < num:
            order = np.random.default_rng(derive_seed(seed, what, epoch)).permutation(len(rows)).tolist()
            have = set(picked)
            queue = [i for i in order if i not in have] + [i for i in order if i in have]
            missing = num - len(picked)
            picked, left = picked + queue[:missing], queue[missing:]
            epoch += 1
    return [rows[i] for i in picked]


def takes_together(sampled: Path) -> Iterator[list[dict[str, Any]]]:
    """Rows of a sample artefact's takes.parquet: those of a prompt together, and those of a guided pair."""
    columns = ("take_id", "kind", "prompt_id", "prompt", "file", "anchor_id")
    takes = iter_table(sampled / "takes.parquet", columns)
    return neighbours(takes, lambda t: (t["kind"], t["prompt_id" if t["kind"] == "fresh" else "anchor_id"]))


def _shards(takes: Iterable[Take], size: int) -> Iterator[list[Take]]:
    """Takes in order; one shard holds one kind and one η, since they share a noise schedule."""
    shard: list[Take] = []
    for take in takes:
        if shard and (len(shard) == size or take.eta != shard[0].eta):
            yield shard
            shard = []
        shard.append(take)
    if shard:
        yield shard
