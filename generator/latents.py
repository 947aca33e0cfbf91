"""Latents of many clips, in files: an update reads the clips of a step, and memory holds no others."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from generator.ranks import Ranks

_CLIPS_A_FILE = 16  # a kill costs at most these


class Latents(Protocol):
    """Latents by row, [N, C, T', H', W']: a tensor, or what reads files."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __getitem__(self, rows: list[int]) -> Tensor: ...


class StoredLatents:
    """Rows that are clips of files of `store_latents`; a clip may be several rows.

    Indexed by a list of row numbers, gives float32 [len(rows), C, T', H', W'] on the CPU.
    """

    def __init__(self, files: Sequence[Path], shape: Sequence[int], clips: Sequence[int]) -> None:
        self._files, self._clips = files, clips
        self._opened: dict[Path, safe_open] = {}
        self.shape = (len(clips), *shape)

    def rows(self, clips: Sequence[int]) -> StoredLatents:
        """The same files with other rows: the numbers of their clips."""
        return StoredLatents(self._files, self.shape[1:], clips)

    def __getitem__(self, rows: list[int]) -> Tensor:
        if len(rows) == 0:
            return torch.empty(0, *self.shape[1:])
        return torch.stack([self._read(self._clips[row]) for row in rows])

    def _read(self, clip: int) -> Tensor:
        file = self._files[clip // _CLIPS_A_FILE]
        if file not in self._opened:  # mapped, so that the system may forget what it has read
            self._opened[file] = safe_open(file, framework="pt")
        return self._opened[file].get_slice("latents")[clip % _CLIPS_A_FILE]


def store_latents(
    clips: Sequence[Path],
    read: Callable[[Path], Tensor],
    folder: Path,
    shape: Sequence[int],
    on_start: Callable[[int], None] = lambda num: None,
    on_clips: Callable[[int], None] = lambda num: None,
) -> StoredLatents:
    """Writes what `read` makes of every clip, [C, T', H', W'] of `shape`, below `folder`, a row a clip.

    A file that is there already is kept: a killed attempt left it. Under torchrun every rank calls this with
    the same arguments, writes its share of the files, and returns when all are there. `on_start` is told how
    many clips that share has, `on_clips` how many a file has that is done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ranks = Ranks()
    parts = [clips[k : k + _CLIPS_A_FILE] for k in range(0, len(clips), _CLIPS_A_FILE)]
    files = [folder / f"latents-{number:06d}.safetensors" for number in range(len(parts))]
    share = ranks.share(list(zip(files, parts, strict=True)))
    on_start(sum(len(part) for _, part in share))
    for file, part in share:
        if not file.exists():
            temporary = file.with_suffix(".part")
            save_file({"latents": torch.stack([read(path) for path in part]).contiguous()}, temporary)
            os.replace(temporary, file)
        on_clips(len(part))
    ranks.wait()
    return StoredLatents(files, shape, range(len(clips)))
