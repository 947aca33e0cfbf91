"""Latents in files: the rows that are asked for, once read never again, and shared by the ranks."""

from pathlib import Path

import pytest
import torch

import generator.latents as latents
from generator.latents import store_latents

SHAPE = (2, 3, 4, 4)
CLIPS = [Path(f"clip-{n}.mp4") for n in range(37)]  # three files, the last one short


def of(path: Path) -> torch.Tensor:
    seed = int(path.stem.split("-")[1])
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


class Reader:
    def __init__(self, fails_at: int | None = None) -> None:
        self.read: list[str] = []
        self.fails_at = fails_at

    def __call__(self, path: Path) -> torch.Tensor:
        if len(self.read) == self.fails_at:
            raise KeyboardInterrupt
        self.read.append(path.stem)
        return of(path)


def test_rows_are_the_clips_that_they_name(tmp_path):
    stored = store_latents(CLIPS, of, tmp_path, SHAPE)
    assert stored.shape == (37, *SHAPE)
    assert torch.equal(stored[[36, 0, 16, 15]], torch.stack([of(CLIPS[i]) for i in (36, 0, 16, 15)]))
    twice = stored.rows([5, 5, 30])
    assert twice.shape == (3, *SHAPE)
    assert torch.equal(twice[[1, 2]], torch.stack([of(CLIPS[5]), of(CLIPS[30])]))
    assert twice[[]].shape == (0, *SHAPE)
    assert len(list(tmp_path.iterdir())) == 3


def test_what_is_read_belongs_to_the_reader(tmp_path):
    stored = store_latents(CLIPS, of, tmp_path, SHAPE)
    stored[[3]].zero_()
    assert torch.equal(stored[[3]][0], of(CLIPS[3]))


def test_a_killed_attempt_leaves_whole_files_that_are_not_made_again(tmp_path):
    first = Reader(fails_at=20)
    with pytest.raises(KeyboardInterrupt):
        store_latents(CLIPS, first, tmp_path, SHAPE)
    assert [p.name for p in tmp_path.iterdir()] == ["latents-000000.safetensors"]
    second, told = Reader(), []
    stored = store_latents(CLIPS, second, tmp_path, SHAPE, on_start=told.append, on_clips=told.append)
    assert second.read == [path.stem for path in CLIPS[16:]] and told == [37, 16, 16, 5]
    assert torch.equal(stored[list(range(37))], torch.stack([of(path) for path in CLIPS]))


def test_ranks_share_the_work(tmp_path, monkeypatch):
    readers = [Reader(), Reader()]
    for rank in (0, 1):
        monkeypatch.setattr(
            latents.Ranks, "__init__", lambda self, rank=rank: vars(self).update(rank=rank, num=2)
        )
        monkeypatch.setattr(latents.Ranks, "wait", lambda self: None)
        stored = store_latents(CLIPS, readers[rank], tmp_path, SHAPE)
    assert [len(reader.read) for reader in readers] == [16 + 5, 16]
    assert torch.equal(stored[[0, 20, 36]], torch.stack([of(CLIPS[i]) for i in (0, 20, 36)]))
