"""Storing real clips by the one road: conformed, through the autoencoder, by the one codec."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from generator.clips import read_conformed
from generator.models.base import VideoModel
from generator.road import store_real
from loop.config import ClipConfig
from loop.stages import StageContext


def store_clip(model: VideoModel, clip: ClipConfig, source: Path, file: Path) -> None:
    """Stores one video. Raises ValueError naming it if it cannot be read or is too short."""
    frames = read_conformed(
        source, num_frames=clip.num_frames, height=clip.height, width=clip.width, target_fps=clip.fps
    )
    store_real(model, frames, file, clip.fps)


def store_clips(
    ctx: StageContext, model: VideoModel, files: Iterable[tuple[str, str]], folder: Path, label: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Stores videos, given as (path below `folder`, name below the artefact).

    Returns the names of those stored and the faults of the others, both by path.
    """
    wanted = sorted(files)
    ctx.progress.start(len(wanted), label)
    stored: dict[str, str] = {}
    faults: dict[str, str] = {}
    for path, name in wanted:
        try:
            if not (ctx.out / name).exists():
                store_clip(model, ctx.config.data.clip, folder / path, ctx.out / name)
            stored[path] = name
        except ValueError as error:
            # without the folder: an artefact must not depend on where it was made
            faults[path] = str(error).removeprefix(f"{folder / path}: ")
        ctx.progress.advance()
    return stored, faults


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
