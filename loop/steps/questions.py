"""Questions about stored clips: whole clips, or frames of one segment, without a hint of which is real."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from generator.clips import read_clip
from reward.question import Frames, Question


@dataclass(frozen=True)
class StoredClip:
    """A lazy reader of a stored clip, or of its frames [start, stop)."""

    clip_id: str
    path: Path
    start: int = 0
    stop: int | None = None

    @property
    def key(self) -> str:
        return f"{self.path}:{self.start}:{self.stop}"

    def __call__(self) -> Frames:
        pixels, fps = read_clip(self.path)
        return Frames(pixels[self.start : self.stop], fps)


def make_question(
    kind: str,
    prompt: str,
    clips: tuple[StoredClip, StoredClip],
    dimensions: tuple[str, ...],
    *,
    scope: str,
    group: str,
    segment: int | None = None,
) -> Question:
    """A question whose id follows from `scope` (campaign seed, round, stage) and the clips.

    So do its votes' seeds and which clip comes first: a real clip has no usual place.
    """
    text = "\x00".join([scope, kind, *sorted(c.clip_id for c in clips), str(segment)])
    digest = hashlib.sha256(text.encode()).hexdigest()
    one, other = sorted(clips, key=lambda c: c.clip_id)
    first, second = (one, other) if int(digest[-1], 16) % 2 == 0 else (other, one)
    return Question(f"q-{digest[:20]}", kind, prompt, first, second, dimensions, segment, group)


def segment_frames(segment: int, frames_per_segment: int) -> tuple[int, int]:
    """[start, stop) of a segment: its own frames, and the one before them to show the motion into it.

    Segment s owns frames s·n+1 … (s+1)·n; frame 0 is the still that the first segment starts from.
    """
    return segment * frames_per_segment, (segment + 1) * frames_per_segment + 1
