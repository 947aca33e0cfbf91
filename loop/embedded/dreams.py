"""Clips as a weak video model dreams them: colours that drift, shapes that melt into others, crooked ways.

Everything is drawn from known numbers, so that the truth about a dream is known as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from loop.embedded import world

_HALF = 10  # pixels from the middle of a mask to its edge

Masks = Callable[[str], np.ndarray]  # a shape's mask, float32 [21, 21], centred


@dataclass(frozen=True)
class Dream:
    """One dream frame by frame; T is world.NUM_FRAMES."""

    frames: np.ndarray  # uint8 [T, H, W, 3]
    colours: tuple[str, str]  # from, to
    shapes: tuple[str, str]
    late: np.ndarray  # [T, 2] in [0, 1]: how far colour and shape have gone from the first to the second
    place: np.ndarray  # [T, 2] centres in pixels, without the shaking
    shake: float  # pixels, standard deviation
    opacity: np.ndarray  # [T]


def draw_dream(
    combo: tuple[str, str, str],
    colours: dict[str, tuple[int, int, int]],
    shapes: list[str],
    masks: Masks,
    rng: np.random.Generator,
) -> Dream:
    """A dream that sets out from (colour, shape, direction) and may end as any of `colours` and `shapes`."""
    colour, shape, direction = combo
    num = world.NUM_FRAMES
    pair_c = (colour, str(rng.choice(list(colours))) if rng.random() < 0.6 else colour)
    pair_s = (shape, str(rng.choice(shapes)) if rng.random() < 0.6 else shape)
    late = np.stack([_change(num, rng), _change(num, rng)], axis=1)
    place = _way(direction, rng)
    shake = float(rng.uniform(0.4, 1.6)) if rng.random() < 0.25 else 0.0
    opacity = np.ones(num)
    if rng.random() < 0.15:
        at, width = rng.integers(0, num), rng.uniform(1.0, 3.0)
        opacity -= rng.uniform(0.5, 1.0) * np.exp(-(((np.arange(num) - at) / width) ** 2))
    wobble, tilt = rng.uniform(0.0, 0.22), rng.uniform(0.0, 0.35)
    phases, sharp = rng.uniform(0, 2 * np.pi, 3), rng.uniform(1.0, 2.5)
    slant = rng.uniform(-0.6, 0.6, 2) if rng.random() < 0.3 else np.zeros(2)
    canvas = np.tile(np.asarray(world.BACKGROUND, dtype=np.float32), (num, world.SIZE, world.SIZE, 1))
    axis = np.linspace(-1, 1, 2 * _HALF + 1, dtype=np.float32)
    for t in range(num):
        mask = (1 - late[t, 1]) * masks(pair_s[0]) + late[t, 1] * masks(pair_s[1])
        mask = np.clip((mask - 0.5) * sharp + 0.5, 0, 1)
        turn = tilt * np.sin(0.25 * t + phases[0])
        stretch = 1 + wobble * np.sin(0.3 * t + phases[1:])
        x, y = place[t] + rng.normal(0, shake, 2)
        whole_x, whole_y = int(np.floor(x)), int(np.floor(y))
        matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * stretch
        shift = np.array([_HALF + x - whole_x, _HALF + y - whole_y]) - matrix @ np.array([_HALF, _HALF])
        mask = cv2.warpAffine(mask, np.column_stack([matrix, shift]), mask.shape[::-1]) * opacity[t]
        # a colour may also change across the shape
        share = np.clip(late[t, 0] + slant[0] * axis[None, :] + slant[1] * axis[:, None], 0, 1)[..., None]
        paint = (1 - share) * np.asarray(colours[pair_c[0]], np.float32) + share * np.asarray(
            colours[pair_c[1]], np.float32
        )
        _paste(canvas[t], mask[..., None], paint, whole_x - _HALF, whole_y - _HALF)
    frames = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return Dream(frames, pair_c, pair_s, late, place, shake, opacity)


def _change(num: int, rng: np.random.Generator) -> np.ndarray:
    """How far a change has gone at each frame: early or late, sudden or slow, whole or in part."""
    middle, width = rng.uniform(-2, num + 2), rng.uniform(0.3, 4.0)
    return (rng.uniform(0.4, 1.0) if rng.random() < 0.5 else 1.0) / (
        1 + np.exp((middle - np.arange(num)) / width)
    )


def _way(direction: str, rng: np.random.Generator) -> np.ndarray:
    """Centres [T, 2] of a way that may be slow, aslant or bent."""
    scene = world.draw_scene("red", "ring", direction, rng)
    ahead = np.asarray(world.DIRECTIONS[direction], dtype=float)
    length = rng.uniform(0.3, 1.1) if rng.random() < 0.5 else 1.0
    aside = rng.uniform(-0.6, 0.6) if rng.random() < 0.5 else 0.0
    bend = rng.uniform(-0.5, 0.5) if rng.random() < 0.3 else 0.0
    s = np.linspace(0, 1, world.NUM_FRAMES)[:, None]
    side = ahead[::-1]
    way = ahead * length * s + side * (aside * length * s + bend * s * (1 - s) * 2)
    return np.array([scene.x, scene.y]) + world.TRAVEL * way


def _paste(canvas: np.ndarray, mask: np.ndarray, paint: np.ndarray, left: int, top: int) -> None:
    """Paints float32 [21, 21, 3] through a mask in place; what lies outside is cut off."""
    rows = slice(max(top, 0), min(top + len(mask), world.SIZE))
    columns = slice(max(left, 0), min(left + len(mask), world.SIZE))
    if rows.start < rows.stop and columns.start < columns.stop:
        inner = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
        canvas[rows, columns] += mask[inner] * (paint[inner] - canvas[rows, columns])
