"""How much disk a round will take, so that a campaign stops between rounds and never fills the disk.

Before round 1 that is a forecast: a clip is as large as round 0's, weights are as large as their models, of
which the safetensors headers are read. Later rounds take what the round before took. Tables are small beside
both and count from then on alone. Nothing here is part of any fingerprint.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop.config import CampaignConfig
from loop.errors import Stopped
from loop.models import has_weights_here, makes_judge, resolve_model
from loop.progress import Display
from loop.sizes import in_words
from loop.stages import EVERY_ROUND
from loop.store import Store, read_manifest

_BYTES = {"float32": 4, "bfloat16": 2}
_LONGEST_HEADER = 100_000_000  # bytes, the format's own limit
_ADAM = 2  # moments beside each weight
_LATENTS = 0.25  # bytes a pixel: 16 channels of float32 for 4 × 8 × 8 pixels, as Wan and CogVideoX have them


@dataclass(frozen=True)
class Forecast:
    """Bytes of one round: what its artefacts will hold, and what comes and goes beside them while it trains
    (step checkpoints, latents of the clips).

    unknown: models whose weights are not on this machine, so that they are not counted.
    """

    clips: int
    weights: int
    checkpoints: int
    unknown: tuple[str, ...] = ()
    measured: int | None = None  # what the round before holds, all files

    @property
    def kept(self) -> int:
        return self.clips + self.weights if self.measured is None else self.measured

    @property
    def most(self) -> int:
        """At the worst moment of the round."""
        return self.kept + self.checkpoints


def check_room(store: Store, config: CampaignConfig, round: int, display: Display, announce: bool) -> None:
    """Before a round: warn of a campaign that will not fit, and stop before a round that will not.

    Raises Stopped, so that the same command resumes once there is room. Where nothing is known, nothing is
    said.
    """
    expected = forecast(store, config, round)
    if expected is None:
        return
    left = config.rounds - round + 1
    there = _size_of(store.root / f"round-{round:03d}")  # what an earlier launch has made of it
    free = store.free_bytes()
    room = free - config.launch.min_free_gb * 1e9 + there
    if announce:
        display.say(_announcement(expected, left, there, free))
    if expected.most > room:
        raise Stopped(
            f"lack of disk space: round {round} takes about {in_words(expected.most - there)}, but "
            f"{store.root} has {in_words(free)} free, of which launch.min_free_gb keeps "
            f"{config.launch.min_free_gb:g} GB; free some (`retake prune {store.root}` lists what no later "
            "round reads)"
        )
    if expected.kept * left + expected.checkpoints > room:
        fitting = math.floor((room - expected.checkpoints) / expected.kept)
        display.warn_once(
            f"the disk will not hold the campaign: it will stop before round {round + fitting}; "
            f"`retake prune {store.root}` then frees what no later round reads"
        )


def told_before(store: Store, config: CampaignConfig) -> str | None:
    """For a dry run: what is known of the next round that the run would make; None where that is nothing."""
    rounds = range(1, config.rounds + 1)
    to_come = [k for k in rounds if not all(read_manifest(store.artefact(k, s)) for s in EVERY_ROUND)]
    expected = forecast(store, config, to_come[0]) if to_come else None
    if expected is None:
        return None
    there = _size_of(store.root / f"round-{to_come[0]:03d}")
    folder = next(path for path in (store.root.absolute(), *store.root.absolute().parents) if path.is_dir())
    return _announcement(expected, len(to_come), there, Store(folder).free_bytes())


def forecast(store: Store, config: CampaignConfig, round: int) -> Forecast | None:
    """What `round` will take; None before anything is known of a clip or a model."""
    found = _from_models(store, config)
    before = sum(_committed(store, round - 1, stage) for stage in EVERY_ROUND) if round > 1 else 0
    if before:
        return Forecast(found.clips, found.weights, found.checkpoints, measured=before)
    return found if found.clips or found.weights else None


def _announcement(expected: Forecast, left: int, there: int, free: int) -> str:
    clips = in_words(expected.clips) if expected.clips else "not known before round 0"
    parts = f"clips {clips}, weights {in_words(expected.weights)}"
    of = f" ({parts})" if expected.measured is None else ""
    beside = f", and {in_words(expected.checkpoints)} while it trains" if expected.checkpoints else ""
    to_come = max(0, expected.kept * left - there)
    missing = f"; not counted: {', '.join(expected.unknown)}, not on this machine" if expected.unknown else ""
    rounds = f"{left} rounds to come take" if left > 1 else "round to come takes"
    return (
        f"disk: a round takes about {in_words(expected.kept)}{of}{beside}; the {rounds} "
        f"{in_words(to_come)}, {in_words(free)} are free{missing}"
    )


def _from_models(store: Store, config: CampaignConfig) -> Forecast:
    base = read_manifest(store.artefact(0, "evaluate"))
    sizes = [f["size"] for name, f in base.files.items() if name.endswith(".mp4")] if base else []
    num_takes, num_anchors, num_of_gate = _num_clips(store, config)
    num_clips = len(sizes) + num_takes + num_of_gate
    clips = round(sum(sizes) / len(sizes) * num_clips) if sizes else 0
    unknown: list[str] = []
    update, checkpoints = _of_update(config, num_takes + num_anchors, unknown)
    judge, of_judge = _of_judge(config, unknown)
    return Forecast(clips, update + judge, max(checkpoints, of_judge), tuple(dict.fromkeys(unknown)))


def _num_clips(store: Store, config: CampaignConfig) -> tuple[int, int, int]:
    """Takes of sample, anchors of the train part, takes of gate; evaluate films as many as in round 0."""
    prepared, sample = store.artefact(0, "prepare"), config.sample
    anchors = _column(prepared / "anchors.parquet", "part", "caption")
    prompts = _column(prepared / "prompts.parquet", "part", "text")
    captions = {caption for _, caption in anchors}
    filmed = [part for part, text in prompts if not sample.first_frame or text in captions]
    num_prompts, num_anchors = Counter(filmed), Counter(part for part, _ in anchors)
    fresh = min(sample.fresh.num_prompts, num_prompts["train"]) * sample.fresh.takes_per_prompt
    guided = 2 * min(sample.guided.num_anchors, num_anchors["train"])
    gate = 2 * num_prompts["gate"] * config.gate.num_seeds if config.gate.enabled else 0
    return fresh + guided, num_anchors["train"], gate


def _of_update(config: CampaignConfig, num_clips: int, unknown: list[str]) -> tuple[int, int]:
    """Bytes of the generator's new weights, and of an update's step checkpoints and clips' latents."""
    folder = _folder(config.generator.model, "generator.model", unknown)
    if folder is None:
        return 0, 0
    shapes = _shapes(p for part in sorted(folder.glob("transformer*")) for p in part.glob("*.safetensors"))
    update = config.update
    trained = _trained(shapes, update.lora)
    # what is trained is kept in float32; a step checkpoint lies beside the one before until it is whole
    copies = 1 + _ADAM + bool(update.average) + (update.reference == "ema")
    size = 4 if update.lora else _BYTES[config.generator.dtype]
    clip = config.data.clip
    latents = round(_LATENTS * clip.num_frames * clip.height * clip.width * num_clips)
    return trained * size, 4 * trained * (2 * copies + bool(update.held_out_share)) + latents


def _of_judge(config: CampaignConfig, unknown: list[str]) -> tuple[int, int]:
    """The same for a judge, whose adapter is merged: every round saves all of its weights."""
    if not (makes_judge(config) and has_weights_here(config.judge)) or config.judge.model is None:
        return 0, 0
    folder = _folder(config.judge.model, "judge.model", unknown)
    if folder is None:
        return 0, 0
    shapes, settings = _shapes(folder.glob("*.safetensors")), config.train_judge
    trained = _trained(shapes, settings.lora)
    size = _trained(shapes, None) * _BYTES[settings.dtype]
    return size, 4 * trained * 2 * (1 + _ADAM) if settings.checkpoint_every else 0


def _folder(model: str, key: str, unknown: list[str]) -> Path | None:
    """The folder of a model, in the hub's cache if it has a hub id; else its name joins `unknown`."""
    resolved = resolve_model(model, key)
    if Path(resolved).is_dir():
        return Path(resolved)
    from huggingface_hub.constants import HF_HUB_CACHE

    cached = Path(HF_HUB_CACHE) / f"models--{resolved.replace('/', '--')}"
    found = sorted((cached / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime)
    if not found:
        unknown.append(model)
    return found[-1] if found else None


def _shapes(files: Iterable[Path]) -> dict[str, list[int]]:
    """Shape by name of every tensor in safetensors files; a variant of the same weights counts once.

    A file that is none counts nothing: the stage that loads it says what is wrong with it.
    """
    shapes: dict[str, list[int]] = {}
    for file in files:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            text = stream.read(length) if length <= _LONGEST_HEADER else b""
        try:
            header = json.loads(text)
            shapes |= {
                f"{file.parent.name}/{n}": t["shape"] for n, t in header.items() if n != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return shapes


def _trained(shapes: dict[str, list[int]], lora: Any) -> int:
    """Weights that are trained: all, or an adapter's two factors of each matrix that it is on."""
    if lora is None:
        return sum(math.prod(shape) for shape in shapes.values())
    targets = tuple(f".{name}.weight" for name in lora.target_modules)
    return sum(lora.rank * sum(s) for n, s in shapes.items() if n.endswith(targets) and len(s) == 2)


def _committed(store: Store, round: int, stage: str) -> int:
    manifest = read_manifest(store.artefact(round, stage))
    return sum(file["size"] for file in manifest.files.values()) if manifest else 0


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _column(table: Path, *names: str) -> list[tuple[str, ...]]:
    if not table.is_file():
        return []
    import pyarrow.parquet  # slow to import

    columns = pyarrow.parquet.ParquetFile(table).read(columns=list(names))
    return list(zip(*(columns.column(name).to_pylist() for name in names), strict=True))
