"""Clips of the embedded world as a weak video model would make them, for the judge's first lessons.

The flaws of known answers (reward/corruptions.py) and three that only a generator makes: a shape that
turns off its way, one that becomes another, and a second shape that does not belong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import cv2
import numpy as np

from loop.embedded import world
from reward.corruptions import FLAWS, GRADES, STEADY, Flaw, corrupt
from reward.question import pick_frames

GENERATED: dict[str, Flaw] = {
    "turn": Flaw("turns", motion=1.0, text_alignment=0.5, graded=False),
    "morph": Flaw("morphs", visual_quality=1.0, text_alignment=0.5, graded=False),
    "double": Flaw("doubled", visual_quality=1.0, graded=False),
}
# Left out: a wrong caption is a matter of the prompt, and in this world backwards is another direction.
NAMES = tuple(name for name in FLAWS if name not in ("wrong_caption", "reverse")) + tuple(GENERATED)
STILL = ("blur", "noise", "fade", "double")  # flaws that one frame shows
WORDS = (STEADY, *(flaw.word for flaw in (FLAWS | GENERATED).values() if flaw.word != STEADY))
Combo = tuple[str, str, str]  # colour, shape, direction
# Not of the world. In the world's training captions a colour and a shape go with two of four directions;
# a judge that learns directions from these alone never says the other two, whatever it sees.
STRANGE_COLOURS = {"orange": (240, 130, 30), "pink": (250, 110, 160), "lime": (165, 240, 60)}
STRANGE_SHAPES = ("disc", "diamond", "bar")
COLOURS = world.COLOURS | STRANGE_COLOURS
SHAPES = (*world.SHAPES, *STRANGE_SHAPES)
_WRONG = (0.0, 0.8, 1.2, 1.5)  # damage of the alignment by number of wrong attributes
_OVERALL_WEIGHTS = {"text_alignment": 1.5, "motion": 1.0, "visual_quality": 1.0}  # as for known answers
_OFFSETS = 8  # sub-pixel places per pixel at which masks are kept
_HALF = 10  # pixels from the middle of a mask to its edge


@dataclass(frozen=True)
class View:
    """What a clip shows, against a prompt: a side of `reward.sides.compare`."""

    attributes: Combo
    flaw: str | None = None
    grade: int = 0
    prompt: Combo | None = None

    def against(self, prompt: Combo) -> View:
        return replace(self, prompt=prompt)

    def damage(self, dimension: str) -> float:
        total = 0.0 if self.flaw is None else (FLAWS | GENERATED)[self.flaw].damage(dimension, self.grade)
        if dimension == "text_alignment" and self.prompt is not None:
            wrong = [seen != asked for seen, asked in zip(self.attributes, self.prompt, strict=True)]
            total += _WRONG[sum(wrong)]
        return total

    @property
    def total(self) -> float:
        return sum(weight * self.damage(dimension) for dimension, weight in _OVERALL_WEIGHTS.items())

    def describe(self, other: View) -> str:
        """The sentence about this clip, in the form of `reward.sides.Side.describe`."""
        word = (FLAWS | GENERATED)[self.flaw].word if self.flaw else STEADY
        if self.flaw in FLAWS and self.flaw == other.flaw and self.grade != other.grade:
            word = f"{'more' if self.grade > other.grade else 'less'} {word}"
        return f"{world.caption_of(*self.attributes)}, {word}."


@cache
def _mask(shape: str, sub_x: int, sub_y: int) -> np.ndarray:
    x, y, size = _HALF + sub_x / _OFFSETS, _HALF + sub_y / _OFFSETS, 2 * _HALF + 1
    if shape in world.SHAPES:
        return world.shape_mask(shape, x, y, size=size)
    grid = (np.arange(size * 4, dtype=np.float32) + 0.5) / 4 - 0.5
    u, v = (grid[None, :] - x) / world.RADIUS, (grid[:, None] - y) / world.RADIUS
    if shape == "disc":
        inside = u * u + v * v <= 1
    elif shape == "diamond":
        inside = np.abs(u) + np.abs(v) <= 1
    else:
        inside = (np.abs(u) <= 1) & (np.abs(v) <= 0.35)
    return inside.reshape(size, 4, size, 4).mean(axis=(1, 3), dtype=np.float32)


def _paint(canvas: np.ndarray, shape: str, colour: str, x: float, y: float) -> None:
    """Draws a shape in place on float32 [H, W, 3]; what lies outside is cut off."""
    whole_x, whole_y = int(np.floor(x)), int(np.floor(y))
    mask = _mask(shape, int((x - whole_x) * _OFFSETS), int((y - whole_y) * _OFFSETS))
    top, left = whole_y - _HALF, whole_x - _HALF
    rows = slice(max(top, 0), min(top + len(mask), world.SIZE))
    columns = slice(max(left, 0), min(left + len(mask), world.SIZE))
    if rows.start < rows.stop and columns.start < columns.stop:
        part = mask[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left, None]
        paint = np.asarray(COLOURS[colour], dtype=np.float32)
        canvas[rows, columns] += part * (paint - canvas[rows, columns])


def part_of(combo: Combo) -> str:
    """As `world.part_of`, with all that is not of the world in the part "strange"."""
    known = combo[0] in world.COLOURS and combo[1] in world.SHAPES
    return world.part_of(*combo) if known else "strange"


@cache
def combos_of(part: str) -> list[Combo]:
    return [c for c in product(COLOURS, SHAPES, world.DIRECTIONS) if part_of(c) == part]


def draw_clip(
    combo: Combo,
    flaw: str | None,
    rng: np.random.Generator,
    window: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray, View]:
    """One clip of (colour, shape, direction): frames uint8 [T, H, W, 3], centres in pixels [T, 2], its View.

    With a window [start, stop) only these frames come back, the flaw is in them and their first one is
    left sound (as in a SegmentReader, which shows the frame before the segment).
    """
    colour, shape, direction = combo
    num = world.NUM_FRAMES
    start, stop = window or (0, num)
    span = (start + 1, stop) if window else (0, num)
    scene = world.draw_scene(colour, shape, direction, rng)
    step = world.TRAVEL / (num - 1)
    steps = np.tile(np.asarray(world.DIRECTIONS[direction]) * step, (num, 1))
    middle = span[0] + (stop - start) // 2
    change = int(rng.integers(middle, max(middle + 1, stop - 1)))
    if flaw == "turn":
        other = str(rng.choice([d for d in world.DIRECTIONS if d != direction]))
        steps[change:] = np.asarray(world.DIRECTIONS[other]) * step
    place = np.array([scene.x, scene.y]) + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)[:-1]])
    frames = _render(combo, place, flaw, change, rng)
    grade = int(rng.choice(GRADES))
    if flaw is not None and flaw in FLAWS:
        others = [c for c in combos_of(part_of(combo)) if c != combo]
        spliced = draw_clip(others[rng.integers(len(others))], None, rng)[0] if flaw == "splice" else None
        frames = corrupt(flaw, frames, span, grade, rng, spliced)
    return _as_decoded(frames, rng)[start:stop], place[start:stop], View(combo, flaw, grade if flaw else 0)


def _render(
    combo: Combo, place: np.ndarray, flaw: str | None, change: int, rng: np.random.Generator
) -> np.ndarray:
    """The shape at every place [T, 2]; a morph and a double begin at frame `change`."""
    colour, shape, direction = combo
    late = str(rng.choice([s for s in SHAPES if s != shape]))
    across = np.asarray(world.DIRECTIONS[direction])[::-1] * rng.uniform(9, 13)
    if ((place[0] + across - world.SIZE / 2) * across).sum() > 0:
        across = -across  # towards the side that has room
    twin_from = 0 if rng.random() < 0.6 else change
    canvas = np.tile(np.asarray(world.BACKGROUND, dtype=np.float32), (len(place), world.SIZE, world.SIZE, 1))
    for t, (x, y) in enumerate(place):
        if flaw == "double" and t >= twin_from:
            _paint(canvas[t], late, colour, x + across[0], y + across[1])
        _paint(canvas[t], late if flaw == "morph" and t >= change else shape, colour, x, y)
    return np.rint(canvas).astype(np.uint8)


def _as_decoded(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Slight softness, noise and gain, which codecs and autoencoders add to the best of clips."""
    sigma, noise, gain = rng.uniform(0.0, 0.5), rng.uniform(0.0, 4.0), rng.uniform(0.95, 1.05)
    soft = np.stack([cv2.GaussianBlur(f, (0, 0), sigma) for f in frames]) if sigma > 0.2 else frames
    rough = soft * np.float32(gain) + rng.standard_normal(frames.shape, dtype=np.float32) * np.float32(noise)
    return np.clip(np.rint(rough), 0, 255).astype(np.uint8)


@dataclass
class Pool:
    """Clips of one length and their truth: frames uint8 [N, T, H, W, 3], centres in pixels [N, T, 2]."""

    frames: np.ndarray
    places: np.ndarray
    views: list[View]


def draw_pool(
    num: int,
    part: str,
    rng: np.random.Generator,
    num_frames: int | None = None,
    names: tuple[str, ...] = NAMES,
    steady: float = 0.35,
    strange: float = 0.0,
) -> Pool:
    """`num` clips of a part's captions, a share `steady` of them sound, the others with one of `names`.

    A share `strange` of the clips shows what the world does not have.

    Whole clips come as the 8 frames that a judge is shown of them; with `num_frames` windows of as many
    consecutive frames come instead.
    """
    frames, places, views = [], [], []
    for _ in range(num):
        flaw = None if rng.random() < steady else names[rng.integers(len(names))]
        window = None
        if num_frames is not None:
            start = int(rng.integers(0, world.NUM_FRAMES - num_frames + 1))
            window = (start, start + num_frames)
            flaw = None if flaw == "turn" else flaw  # too few frames to turn in
        combos = combos_of("strange" if rng.random() < strange else part)
        clip, place, view = draw_clip(combos[rng.integers(len(combos))], flaw, rng, window)
        shown = pick_frames(len(clip), 8)
        frames.append(clip[shown])
        places.append(place[shown])
        views.append(view)
    return Pool(np.stack(frames), np.stack(places), views)
