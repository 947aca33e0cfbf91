"""What the network is told of takes and anchors: their prompts and, where asked for, their first frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from generator.clips import read_clip
from generator.condition import Condition
from generator.models.base import VideoModel
from generator.road import to_tensor

_BATCH = 64  # prompts or frames that are encoded together


def condition_of(
    model: VideoModel, prompts: Sequence[str], first_frames: Sequence[Path | None], num_frames: int
) -> Condition:
    """One row for each prompt and the clip whose first frame is given with it (None for all: text alone).

    Equal prompts are encoded once. On the model's device.
    """
    assert len(prompts) == len(first_frames)
    unique = {text: i for i, text in enumerate(dict.fromkeys(prompts))}
    texts = list(unique)
    encoded = Condition.cat(
        [model.encode_prompts(texts[k : k + _BATCH]) for k in range(0, len(texts), _BATCH)]
    )
    condition = encoded.rows([unique[text] for text in prompts])
    if all(path is None for path in first_frames):
        return condition
    frames = {path: to_tensor(read_clip(path)[0][:1])[:, :, 0] for path in first_frames if path is not None}
    if len(condition) != sum(path is not None for path in first_frames):
        raise ValueError("some clips have a first frame given and some have not")
    parts = []
    for k in range(0, len(prompts), _BATCH):
        here = torch.cat([frames[path] for path in first_frames[k : k + _BATCH] if path is not None])
        parts.append(model.with_first_frame(condition.rows(slice(k, k + _BATCH)), here, num_frames))
    return Condition.cat(parts)


def shared_conditions(
    model: VideoModel, wanted: Iterable[tuple[str, Path | None]], num_frames: int
) -> tuple[Condition, dict[tuple[str, Path | None], int]]:
    """The condition of every distinct (prompt, first frame), on the CPU, and the row of each."""
    rows = {key: i for i, key in enumerate(sorted(set(wanted), key=lambda k: (k[0], str(k[1]))))}
    condition = condition_of(model, [text for text, _ in rows], [path for _, path in rows], num_frames)
    return condition.to("cpu"), rows
