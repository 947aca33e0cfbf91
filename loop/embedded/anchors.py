"""Writes the embedded world's anchors the way a user would bring their own: mp4 files and a metadata.csv."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Mapping
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from generator.clips import write_clip
from loop.embedded import world

COLUMNS = ("file_name", "caption", "source", "part", "category")


def write_anchors(folder: str | Path, num_per_caption: int | Mapping[str, int], seed: int) -> None:
    """Render and store anchors with metadata.csv (COLUMNS; part is world.part_of's, category the direction).

    num_per_caption: one number for all captions, or numbers keyed by caption or by part (absent: none).
    An anchor's picture depends only on the seed, its caption and its number, so a larger set contains a
    smaller one.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, ...]] = []
    for combination in world.combinations():
        caption, part = world.caption_of(*combination), world.part_of(*combination)
        for number in range(_wanted(num_per_caption, caption, part)):
            rng = np.random.default_rng(_stable_int(f"anchor {seed} {caption} {number}"))
            source = f"{'-'.join(combination)}-{number:03d}"
            write_clip(folder / f"{source}.mp4", world.render(world.draw_scene(*combination, rng)), world.FPS)
            rows.append((f"{source}.mp4", caption, source, part, combination[2]))
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


def training_captions() -> list[str]:
    """All captions of the train part, with anchors or without."""
    return [world.caption_of(*c) for c in world.combinations() if world.part_of(*c) == "train"]


def spread(num_anchors: int | Mapping[str, int]) -> dict[str, int]:
    """A number per caption that adds up to num_anchors: in proportion to the parts' captions, or by part.

    Any four anchors or more have one in every part; no caption of a part gets a second before all have one.
    """
    if isinstance(num_anchors, int) and num_anchors < 4:
        raise ValueError(
            f"data.num_anchors is {num_anchors}; the four parts need at least one anchor each, so 4"
        )
    by_part: dict[str, list[str]] = {}
    for combination in world.combinations():
        by_part.setdefault(world.part_of(*combination), []).append(world.caption_of(*combination))
    shuffled = {part: sorted(captions, key=_stable_int) for part, captions in by_part.items()}
    if not isinstance(num_anchors, int):
        return dict(Counter(c for part, n in num_anchors.items() for c in islice(cycle(shuffled[part]), n)))
    places = [
        (rank / len(captions), part, caption)
        for part, captions in shuffled.items()
        for rank, caption in enumerate(captions)
    ]
    return dict(Counter(islice(cycle(caption for _, _, caption in sorted(places)), num_anchors)))


def _wanted(num_per_caption: int | Mapping[str, int], caption: str, part: str) -> int:
    if isinstance(num_per_caption, int):
        return num_per_caption
    return num_per_caption.get(caption, num_per_caption.get(part, 0))


def _stable_int(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
