"""Clips of a moving block, made in memory, for the tests of reward."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reward.question import Frames, Question
from reward.sides import Source

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (60, 80, 240)}


@dataclass(frozen=True)
class BlockReader:
    """A block of `colour` that crosses a dark frame, `num_frames` x `size` x `size`."""

    colour: str
    row: int = 4
    num_frames: int = 12
    size: int = 16
    speed: float = 0.8

    @property
    def key(self) -> str:
        return f"{self.colour}-{self.row}-{self.num_frames}-{self.size}-{self.speed}"

    def __call__(self) -> Frames:
        pixels = np.full((self.num_frames, self.size, self.size, 3), 24, dtype=np.uint8)
        for t in range(self.num_frames):
            x = 1 + round(t * self.speed)
            pixels[t, self.row : self.row + 4, x : x + 4] = COLOURS[self.colour]
        return Frames(pixels, 8.0)


def sources(num_rows: int = 2, **kwargs: int) -> list[Source]:
    """`num_rows` renders of each colour."""
    return [
        Source(
            f"{colour}{row}",
            f"a {colour} box moves right",
            f"{colour}{row}",
            BlockReader(colour, 3 * row + 1, **kwargs),
        )
        for colour in COLOURS
        for row in range(num_rows)
    ]


def question(
    name: str = "q0",
    colours: tuple[str, str] = ("red", "blue"),
    dimensions: tuple[str, ...] = ("motion", "overall"),
) -> Question:
    return Question(
        name,
        "take_take",
        "a red box moves right",
        BlockReader(colours[0]),
        BlockReader(colours[1]),
        dimensions,
    )
