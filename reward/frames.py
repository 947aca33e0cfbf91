"""Which frames of a clip a judge is shown, at which size and time, whatever its type. Imports no torch."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import cv2
import numpy as np
from PIL import Image

from reward.config import JudgeConfig
from reward.question import ClipReader, Frames, pick_frames

_CACHE_BYTES = 256 * 2**20


def instructions_of(config: JudgeConfig) -> str:
    """What opens the message: `judge.instructions` with the answer's form for the configured dimensions."""
    form = " ".join(f"{dimension}: first|second|tie" for dimension in config.dimensions)
    return config.instructions.replace("{dimensions}", form)


def num_shown(config: JudgeConfig, is_segment: bool) -> int:
    """Frames shown of a clip, at most."""
    return config.num_segment_frames if is_segment else config.num_frames


def show(reader: ClipReader, num: int, frame_size: int | None) -> tuple[list[float], list[Image.Image]]:
    """Times in seconds and RGB images of at most `num` frames, `frame_size` pixels high and wide if given."""
    return show_frames(reader(), num, frame_size)


def show_frames(frames: Frames, num: int, frame_size: int | None) -> tuple[list[float], list[Image.Image]]:
    """`show` for frames that are decoded already."""
    picked = pick_frames(len(frames.pixels), num)
    return [i / frames.fps for i in picked], [_image(frames.pixels[i], frame_size) for i in picked]


def shown_json(times: Sequence[Sequence[float]], sizes: Sequence[tuple[int, int]]) -> str:
    """What a vote says of its frames, as JSON; each list is of the clip shown first and the one shown second.

    num_frames; size: [height, width] in pixels before the model's own image processor; times: of every
    frame in seconds; fps: frames shown a second, null for a single frame.
    """
    rates = [(len(t) - 1) / (t[-1] - t[0]) if len(t) > 1 else None for t in times]
    kept = {
        "num_frames": [len(t) for t in times],
        "size": [list(size) for size in sizes],
        "fps": [None if rate is None else round(rate, 3) for rate in rates],
        "times": [[round(second, 3) for second in t] for t in times],
    }
    return json.dumps(kept, separators=(",", ":"))


def _image(frame: np.ndarray, side: int | None) -> Image.Image:
    if side is not None and frame.shape[:2] != (side, side):
        frame = cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA)
    return Image.fromarray(frame)


class Sized(Protocol):
    @property
    def num_bytes(self) -> int: ...


Shown = TypeVar("Shown", bound=Sized)


class ClipCache(Generic[Shown]):
    """Shown clips by reader and number of frames; the least recently used go first. For one thread at a time.

    A clip comes up in both orders, in several votes and against several others.
    """

    def __init__(self, make: Callable[[ClipReader, int], Shown], limit: int = _CACHE_BYTES) -> None:
        """`make` shows a clip with at most that many frames; `limit` in bytes."""
        self.make, self.limit = make, limit
        self._clips: OrderedDict[tuple[str, int], Shown] = OrderedDict()
        self._bytes = 0

    def get(self, reader: ClipReader, num: int) -> Shown:
        key = (reader.key, num)
        if key in self._clips:
            self._clips.move_to_end(key)
            return self._clips[key]
        clip = self._clips[key] = self.make(reader, num)
        self._bytes += clip.num_bytes
        while self._bytes > self.limit and len(self._clips) > 1:
            _, oldest = self._clips.popitem(last=False)
            self._bytes -= oldest.num_bytes
        return clip

    def clear(self) -> None:
        self._clips.clear()
        self._bytes = 0
