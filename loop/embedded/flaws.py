"""Clips of the embedded world with known truth, for the judge's first lessons.

Two kinds: clips with the flaws of known answers (reward/corruptions.py) and three that only generators
make, and dreams (dreams.py), where everything may be a little wrong at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product

import cv2
import numpy as np

from loop.embedded import world
from loop.embedded.dreams import Dream, draw_dream
from reward.corruptions import FLAWS, GRADES, STEADY, Flaw, corrupt
from reward.question import Answer, pick_frames
from reward.sides import compare

Combo = tuple[str, str, str]  # colour, shape, direction
Roundtrip = Callable[[np.ndarray], np.ndarray]  # a clip through an autoencoder

GENERATED: dict[str, Flaw] = {
    "turn": Flaw("turns", motion=1.0, text_alignment=0.5, graded=False),
    "morph": Flaw("morphs", visual_quality=1.0, text_alignment=0.5, graded=False),
    "double": Flaw("doubled", visual_quality=1.0, graded=False),
}
# The shipped judge has no words for the others: its vocabulary is closed, and its weights are made.
TAUGHT = {name: flaw for name, flaw in FLAWS.items() if name not in ("drop", "drift")}
ALL_FLAWS = TAUGHT | GENERATED
# Left out: a wrong caption is a matter of the prompt, and in this world backwards is another direction.
NAMES = tuple(name for name in ALL_FLAWS if name not in ("wrong_caption", "reverse"))
STILL = ("blur", "noise", "fade", "double")  # flaws that one frame shows
WORDS = (STEADY, *(flaw.word for flaw in ALL_FLAWS.values() if flaw.word != STEADY))
# Not of the world. In the world's training captions a colour and a shape go with two of four directions;
# a judge that learns directions from these alone never says the other two, whatever it sees.
STRANGE_COLOURS = {"white": (235, 235, 235), "grey": (130, 130, 135), "brown": (125, 75, 35)}
STRANGE_SHAPES = ("bar", "corner", "dots")
COLOURS = world.COLOURS | STRANGE_COLOURS
SHAPES = (*world.SHAPES, *STRANGE_SHAPES)
_WRONG = (0.0, 0.8, 1.2, 1.5)  # damage of the alignment by number of wrong attributes
_OVERALL_WEIGHTS = {"text_alignment": 1.5, "motion": 1.0, "visual_quality": 1.0}  # as for known answers
_OFFSETS = 8  # sub-pixel places per pixel at which masks are kept
_HALF = 10  # pixels from the middle of a mask to its edge


@dataclass(frozen=True)
class View:
    """What a clip shows, against a prompt: a side of `reward.sides.compare`.

    A dream has `shares`, for each attribute how much of the clip shows which word, and `harm` by dimension.
    """

    attributes: Combo
    flaw: str | None = None
    grade: int = 0
    prompt: Combo | None = None
    shares: tuple[dict[str, float], ...] | None = None
    harm: dict[str, float] = field(default_factory=dict)

    def against(self, prompt: Combo) -> View:
        return replace(self, prompt=prompt)

    def damage(self, dimension: str) -> float:
        flaw = ALL_FLAWS[self.flaw] if self.flaw is not None and self.shares is None else Flaw(STEADY)
        total = flaw.damage(dimension, self.grade) + self.harm.get(dimension, 0.0)
        if dimension == "text_alignment" and self.prompt is not None:
            shares = self.shares or tuple({word: 1.0} for word in self.attributes)
            wrong = sum(1 - share.get(word, 0.0) for share, word in zip(shares, self.prompt, strict=True))
            total += float(np.interp(wrong, range(4), _WRONG))
        return total

    @property
    def total(self) -> float:
        return sum(weight * self.damage(dimension) for dimension, weight in _OVERALL_WEIGHTS.items())

    def describe(self, other: View) -> str:
        """The sentence about this clip, in the form of `reward.sides.Side.describe`."""
        word = ALL_FLAWS[self.flaw].word if self.flaw else STEADY
        known = self.shares is None and other.shares is None and self.flaw in TAUGHT
        if known and self.flaw == other.flaw and self.grade != other.grade:
            word = f"{'more' if self.grade > other.grade else 'less'} {word}"
        return f"{world.caption_of(*self.attributes)}, {word}."


def compare_views(first: View, second: View, dimensions: tuple[str, ...]) -> dict[str, Answer] | None:
    """As `reward.sides.compare`; where a dream takes part, plain differences of damage decide."""
    if first.shares is None and second.shares is None:
        return compare(first, second, dimensions)  # type: ignore[arg-type]  # a View has all that it reads
    answers: dict[str, Answer] = {}
    for dimension in (*_OVERALL_WEIGHTS, "overall"):
        if dimension == "overall":
            difference, clear = second.total - first.total, 0.35
            tie = set(answers.values()) == {"tie"}
        else:
            difference, clear = second.damage(dimension) - first.damage(dimension), 0.25
            tie = abs(difference) <= 0.12
        if not tie and abs(difference) < clear:
            return None
        answers[dimension] = "tie" if tie else "first" if difference > 0 else "second"
    return {dimension: answers[dimension] for dimension in dimensions}


@cache
def _mask(shape: str, sub_x: int = 0, sub_y: int = 0) -> np.ndarray:
    x, y, size = _HALF + sub_x / _OFFSETS, _HALF + sub_y / _OFFSETS, 2 * _HALF + 1
    if shape in world.SHAPES:
        return world.shape_mask(shape, x, y, size=size)
    grid = (np.arange(size * 4, dtype=np.float32) + 0.5) / 4 - 0.5
    u, v = (grid[None, :] - x) / world.RADIUS, (grid[:, None] - y) / world.RADIUS
    if shape == "bar":
        inside = (np.abs(u) <= 1) & (np.abs(v) <= 0.35)
    elif shape == "corner":
        inside = (np.abs(u) <= 0.9) & (np.abs(v) <= 0.9) & ((u <= -0.3) | (v >= 0.3))
    else:
        inside = (np.abs(u) - 0.6) ** 2 + v * v <= 0.14
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
    roundtrip: Roundtrip | None = None,
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
    if flaw == "recolour" and colour in ("white", "grey"):
        flaw = None  # a hue that is not there cannot change
    place = np.array([scene.x, scene.y]) + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)[:-1]])
    frames = _render(combo, place, flaw, change, rng)
    frames = roundtrip(frames) if roundtrip else frames
    grade = int(rng.choice(GRADES))
    if flaw is not None and flaw in FLAWS:
        others = [c for c in combos_of(part_of(combo)) if c != combo]
        spliced = draw_clip(others[rng.integers(len(others))], None, rng)[0] if flaw == "splice" else None
        frames = corrupt(flaw, frames, span, grade, rng, spliced)
    return _as_decoded(frames, rng)[start:stop], place[start:stop], View(combo, flaw, grade if flaw else 0)


def draw_dream_clip(
    part: str,
    rng: np.random.Generator,
    window: tuple[int, int] | None = None,
    roundtrip: Roundtrip | None = None,
) -> tuple[np.ndarray, np.ndarray, View]:
    """As `draw_clip`, a dream that for the most part shows one of the part's captions."""
    start, stop = window or (0, world.NUM_FRAMES)
    combos = combos_of(part)
    colours, shapes = (COLOURS, SHAPES) if part == "strange" else (world.COLOURS, world.SHAPES)
    while True:
        combo = combos[rng.integers(len(combos))]
        dream = draw_dream(combo, colours, list(shapes), _mask, rng)
        view = _view_of(dream, start, stop)
        if part_of(view.attributes) == part:
            frames = roundtrip(dream.frames) if roundtrip else dream.frames
            return _as_decoded(frames, rng)[start:stop], dream.place[start:stop], view


def _view_of(dream: Dream, start: int, stop: int) -> View:
    """The truth about frames [start, stop) of a dream."""
    late_colour, late_shape = dream.late[start:stop].mean(axis=0)
    colours: dict[str, float] = {dream.colours[0]: 1 - late_colour}
    colours[dream.colours[1]] = colours.get(dream.colours[1], 0.0) + late_colour
    shapes: dict[str, float] = {dream.shapes[0]: 1 - late_shape}
    shapes[dream.shapes[1]] = shapes.get(dream.shapes[1], 0.0) + late_shape
    way = dream.place[stop - 1] - dream.place[start]
    pace = world.TRAVEL * (stop - 1 - start) / (world.NUM_FRAMES - 1)
    directions = {}
    for name, ahead in world.DIRECTIONS.items():
        along, aside = float(way @ ahead) / pace, abs(float(way @ np.asarray(ahead)[::-1])) / pace
        directions[name] = float(np.clip(along - 0.5 * aside, 0, 1))
    attributes = (max(colours, key=colours.__getitem__), max(shapes, key=shapes.__getitem__),
                  max(directions, key=directions.__getitem__))  # fmt: skip
    unsteady = {
        "recolour": 1 - colours[attributes[0]],
        "morph": 1 - shapes[attributes[1]],
        "vanish": float((1 - dream.opacity[start:stop]).max()) / 2,
        "jitter": dream.shake / 3,
    }
    flaw = max(unsteady, key=unsteady.__getitem__)
    slow = 1 - min(1.0, float(np.abs(way).max()) / pace)
    harm = {
        "motion": min(1.0, 0.6 * dream.shake + 0.5 * slow + float((1 - dream.opacity[start:stop]).mean())),
        "visual_quality": min(1.0, 1.5 * (unsteady["recolour"] + unsteady["morph"])),
    }
    return View(
        attributes, flaw if unsteady[flaw] > 0.15 else None, shares=(colours, shapes, directions), harm=harm
    )


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
    """Slight softness, noise and gain, which codecs add to the best of clips."""
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
    *,
    num_frames: int | None = None,
    names: tuple[str, ...] = NAMES,
    steady: float = 0.35,
    dreams: float = 0.0,
    strange: float = 0.0,
    roundtrip: Roundtrip | None = None,
) -> Pool:
    """`num` clips of a part's captions; of those that are no dreams a share `steady` is sound.

    Whole clips come as the 8 frames that a judge is shown of them; with `num_frames` windows of as many
    consecutive frames come instead. A share `strange` of the clips shows what the world does not have.
    Half of the clips go through `roundtrip`, where there is one.
    """
    frames, places, views = [], [], []
    for _ in range(num):
        window = None
        if num_frames is not None:
            start = int(rng.integers(0, world.NUM_FRAMES - num_frames + 1))
            window = (start, start + num_frames)
        through = roundtrip if roundtrip and rng.random() < 0.5 else None
        here = "strange" if rng.random() < strange else part
        if rng.random() < dreams:
            clip, place, view = draw_dream_clip(here, rng, window, through)
        else:
            flaw = None if rng.random() < steady else names[rng.integers(len(names))]
            flaw = None if window and flaw == "turn" else flaw  # too few frames to turn in
            combos = combos_of(here)
            clip, place, view = draw_clip(combos[rng.integers(len(combos))], flaw, rng, window, through)
        shown = pick_frames(len(clip), 8)
        frames.append(clip[shown])
        places.append(place[shown])
        views.append(view)
    return Pool(np.stack(frames), np.stack(places), views)
