"""A small world of moving shapes: the anchors and prompts of the embedded default.

Every clip shows one coloured shape that moves in a straight line at a steady speed over a dark
background. The caption names exactly what can be measured: colour, shape and direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (230, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 80, 240),
    "yellow": (235, 220, 50),
    "cyan": (50, 215, 225),
    "purple": (205, 60, 215),
}
SHAPES = ("square", "ring", "triangle", "cross")
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

BACKGROUND = (24, 24, 28)
SIZE = 32  # pixels, height and width
NUM_FRAMES = 17  # 4k+1, so the autoencoder's causal stride of 4 gives 1 + 4 latent frames
FPS = 8
RADIUS = 6.0  # pixels, half the side of a shape's bounding box
TRAVEL = 13.0  # pixels between the first and the last frame
_SUPERSAMPLE = 4


@dataclass(frozen=True)
class Scene:
    """What one clip shows. Positions are centres in pixels, (x, y) from the top left corner."""

    colour: str
    shape: str
    direction: str
    x: float
    y: float

    @property
    def caption(self) -> str:
        return caption_of(self.colour, self.shape, self.direction)


def caption_of(colour: str, shape: str, direction: str) -> str:
    """The grammar's only sentence."""
    return f"a {colour} {shape} moves {direction}"


def parse_caption(caption: str) -> tuple[str, str, str]:
    """(colour, shape, direction) of a caption of this world. Raises ValueError for any other text."""
    words = caption.split()
    if len(words) == 5 and caption == caption_of(words[1], words[2], words[4]):
        colour, shape, direction = words[1], words[2], words[4]
        if colour in COLOURS and shape in SHAPES and direction in DIRECTIONS:
            return colour, shape, direction
    raise ValueError(
        f"not a caption of the embedded world: {caption!r} (expected 'a COLOUR SHAPE moves DIRECTION')"
    )


def combinations() -> list[tuple[str, str, str]]:
    """All (colour, shape, direction) triples in a fixed order."""
    return list(product(COLOURS, SHAPES, DIRECTIONS))


def part_of(colour: str, shape: str, direction: str) -> str:
    """The split part of a caption: 48 train, 12 calibrate, 12 gate and 24 report captions.

    A Latin square: every pair of attribute values is seen in training, a quarter of the triples
    (the report part) never is, neither by the shipped weights nor by a campaign.
    """
    c, s, d = list(COLOURS).index(colour), SHAPES.index(shape), list(DIRECTIONS).index(direction)
    remainder = (c + s + d) % 4
    if remainder == 0:
        return "report"
    if remainder == 1:
        return "gate" if (c + s) % 2 == 0 else "calibrate"
    return "train"


def draw_scene(colour: str, shape: str, direction: str, rng: np.random.Generator) -> Scene:
    """A scene of the given caption with a random place, such that the shape never leaves the frame."""
    dx, dy = DIRECTIONS[direction]
    centre = (SIZE - 1) / 2
    along = float(rng.uniform(-2.0, 2.0))
    across = float(rng.uniform(-6.0, 6.0))
    x = centre - dx * (TRAVEL / 2) + (along if dx else across)
    y = centre - dy * (TRAVEL / 2) + (along if dy else across)
    return Scene(colour, shape, direction, x, y)


def shape_mask(shape: str, x: float, y: float, size: int = SIZE, radius: float = RADIUS) -> np.ndarray:
    """Anti-aliased coverage of a shape, float32 [size, size] in [0, 1]."""
    n = size * _SUPERSAMPLE
    grid = (np.arange(n, dtype=np.float32) + 0.5) / _SUPERSAMPLE - 0.5
    u = (grid[None, :] - x) / radius
    v = (grid[:, None] - y) / radius
    if shape == "square":
        inside = (np.abs(u) <= 0.9) & (np.abs(v) <= 0.9)
    elif shape == "ring":
        r2 = u * u + v * v
        inside = (r2 <= 1.0) & (r2 >= 0.30)
    elif shape == "triangle":
        # apex up; the base is the lower edge
        inside = (v <= 0.9) & (v >= -1.0 + 2.0 * np.abs(u) * 0.95)
    elif shape == "cross":
        inside = ((np.abs(u) <= 0.32) & (np.abs(v) <= 1.0)) | ((np.abs(v) <= 0.32) & (np.abs(u) <= 1.0))
    else:
        raise ValueError(f"unknown shape {shape!r}; one of {', '.join(SHAPES)}")
    return inside.reshape(size, _SUPERSAMPLE, size, _SUPERSAMPLE).mean(axis=(1, 3), dtype=np.float32)


def render(scene: Scene, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """The scene as uint8 [num_frames, SIZE, SIZE, 3]."""
    dx, dy = DIRECTIONS[scene.direction]
    background = np.asarray(BACKGROUND, dtype=np.float32)
    colour = np.asarray(COLOURS[scene.colour], dtype=np.float32)
    frames = np.empty((num_frames, SIZE, SIZE, 3), dtype=np.uint8)
    for t in range(num_frames):
        step = TRAVEL * t / max(1, num_frames - 1)
        mask = shape_mask(scene.shape, scene.x + dx * step, scene.y + dy * step)[..., None]
        frames[t] = np.rint(background * (1 - mask) + colour * mask).astype(np.uint8)
    return frames
