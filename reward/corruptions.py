"""Flaws that are put into a clip on purpose, each in three grades, and what each of them damages.

Sizes are fractions of the clip (its side, its number of frames), so the same grade means the same thing
at 32 and at 720 pixels. All functions are deterministic in their random generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

GRADES = (1, 2, 3)  # 1 = subtle, 3 = severe


@dataclass(frozen=True)
class Flaw:
    """The word that describes a flaw and the damage of its worst grade, in [0, 1] per dimension.

    Flaws in time damage motion, flaws within frames damage visual quality, wrong content damages the
    alignment with the prompt.
    """

    word: str
    motion: float = 0.0
    visual_quality: float = 0.0
    text_alignment: float = 0.0
    graded: bool = True  # False: the damage is the same for every grade

    def damage(self, dimension: str, grade: int) -> float:
        """Damage in one dimension: a third of the worst for each grade."""
        worst = float(getattr(self, dimension))
        return worst * grade / 3 if self.graded else worst


STEADY = "steady"  # the word for a clip without a flaw
FLAWS: dict[str, Flaw] = {
    # the wrong caption's grade says how many words differ, not how wrong the clip is
    "wrong_caption": Flaw(STEADY, text_alignment=1.0, graded=False),
    "freeze": Flaw("frozen", motion=1.0),
    "stutter": Flaw("stutters", motion=1.0),
    "jitter": Flaw("shakes", motion=1.0),
    "shuffle": Flaw("shuffled", motion=1.0),
    # backwards motion contradicts the prompt as well: "rises" falls
    "reverse": Flaw("reversed", motion=1.0, text_alignment=1.0, graded=False),
    "vanish": Flaw("vanishes", motion=1.0),
    "blur": Flaw("blurred", visual_quality=1.0),
    "noise": Flaw("noisy", visual_quality=1.0),
    "flicker": Flaw("flickers", visual_quality=1.0),
    "fade": Flaw("faded", visual_quality=1.0),
    "recolour": Flaw("recoloured", visual_quality=1.0, text_alignment=1.0),
    "splice": Flaw("spliced", motion=1.0, text_alignment=1.0),
    "drop": Flaw("jumps", motion=1.0),
    "drift": Flaw("tinted", visual_quality=1.0),
}


def corrupt(
    name: str,
    clip: np.ndarray,
    span: tuple[int, int],
    grade: int,
    rng: np.random.Generator,
    other: np.ndarray | None = None,
) -> np.ndarray:
    """A copy of `clip`, uint8 [T, H, W, 3], with the frames of `span` = [start, stop) corrupted.

    `other` is the clip that a splice continues with, any size and length. A clip that a flaw cannot
    change (a still clip frozen, a grey one recoloured) comes back as it is: compare to find out.
    """
    start, stop = span
    assert 0 <= start < stop <= len(clip) and stop - start >= 2 and grade in GRADES
    out = clip.copy()
    if name == "vanish":
        out[start:stop] = _vanish(clip, clip[start:stop], grade, rng)
    elif name == "splice":
        assert other is not None, "a splice needs another clip"
        out[start:stop] = _splice(clip[start:stop], other, start, grade)
    else:
        out[start:stop] = _SIMPLE[name](clip[start:stop], grade, rng)
    return out


def _share(grade: int, shares: tuple[float, float, float], num_frames: int, low: int, high: int) -> int:
    """A number of frames: the grade's share of the clip, kept in [low, high]."""
    return int(np.clip(round(shares[grade - 1] * num_frames), low, high))


def _freeze(x: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    held = len(x) - _share(grade, (0.4, 0.65, 0.9), len(x), 1, len(x) - 1)
    y = x.copy()
    y[held:] = x[held - 1]
    return y


def _stutter(x: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    block = _share(grade, (0.17, 0.25, 0.34), len(x), 2, len(x))
    return x[(np.arange(len(x)) // block) * block]


def _jitter(x: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    reach = max(1.0, (0.04, 0.08, 0.14)[grade - 1] * min(x.shape[1:3]))
    y = x.copy()
    for t in range(len(x)):
        angle = rng.uniform(0, 2 * np.pi)
        move = np.array([[1, 0, reach * np.cos(angle)], [0, 1, reach * np.sin(angle)]], dtype=np.float32)
        y[t] = cv2.warpAffine(x[t], move, x.shape[2:0:-1], borderMode=cv2.BORDER_REPLICATE)
    return y


def _shuffle(x: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    window = _share(grade, (0.3, 0.6, 1.0), len(x), 2, len(x))
    order = np.arange(len(x))
    for begin in range(0, len(x), window):
        part = order[begin : begin + window]
        mixed = rng.permutation(part)
        # a permutation that happens to change nothing would be a wrong label
        order[begin : begin + window] = np.roll(part, 1) if np.array_equal(mixed, part) else mixed
    return x[order]


def _reverse(x: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    return x[::-1]


def _blur(x: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    sigma = (0.025, 0.045, 0.08)[grade - 1] * min(x.shape[1:3])
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in x])


def _noise(x: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    sigma = (14.0, 28.0, 50.0)[grade - 1]
    noise = rng.standard_normal(x.shape, dtype=np.float32) * sigma
    return np.clip(x + noise, 0, 255).astype(np.uint8)


def _flicker(x: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    swing = (0.2, 0.35, 0.55)[grade - 1]
    # neighbours differ in sign, so that the jumps survive any choice of frames but every second one
    signs = np.where((np.arange(len(x)) // 2 + rng.integers(2)) % 2, 1.0, -1.0)
    gains = 1 + signs * swing * rng.uniform(0.7, 1.0, len(x))
    # dark scenes show no gain, hence the offset
    lift = (gains - 1) * 60
    return np.clip(x * gains[:, None, None, None] + lift[:, None, None, None], 0, 255).astype(np.uint8)


def _fade(x: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    share = (0.4, 0.6, 0.8)[grade - 1]
    grey = x.mean(axis=(1, 2, 3), keepdims=True)
    return np.clip(x * (1 - share) + grey * share, 0, 255).astype(np.uint8)


def _recolour(x: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    reach = (30, 55, 85)[grade - 1] * (1 if rng.integers(2) else -1)  # OpenCV's hue has 180 steps
    y = np.empty_like(x)
    for t, frame in enumerate(x):
        hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)
        shift = round(reach * (t + 1) / len(x))
        hsv[..., 0] = (hsv[..., 0].astype(np.int16) + shift) % 180
        y[t] = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return y


def _saturate(x: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    """Every colour moves towards its pure hue. Of probes alone: no list of flaws to teach has it."""
    factor = (1.4, 2.0, 3.5)[grade - 1]
    y = np.empty_like(x)
    for t, frame in enumerate(x):
        hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = np.clip(hsv[..., 1] * factor, 0, 255).astype(np.uint8)
        y[t] = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return y


def _drop(x: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    """Frames are missing at one place, where the motion jumps; the others are spread over the clip's time."""
    gone = _share(grade, (0.2, 0.35, 0.5), len(x), 1, max(1, len(x) - 2))
    begin = int(rng.integers(1, max(2, len(x) - gone)))  # at either end nothing would jump
    kept = np.delete(np.arange(len(x)), slice(begin, begin + gone))
    return x[kept[np.arange(len(x)) * len(kept) // len(x)]]


def _drift(x: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    """The light slowly turns warm or cold: red gains what blue loses. `recolour` turns the hues instead."""
    reach = (0.25, 0.45, 0.7)[grade - 1] * (1 if rng.integers(2) else -1)
    gain_T = reach * (np.arange(len(x)) + 1) / len(x)
    tint_TC = gain_T[:, None] * np.array([1.0, 0.0, -1.0])
    # dark scenes show no gain, hence the offset
    tinted = x * (1 + tint_TC)[:, None, None, :] + (60 * tint_TC)[:, None, None, :]
    return np.clip(tinted, 0, 255).astype(np.uint8)


def _splice(x: np.ndarray, other: np.ndarray, start: int, grade: int) -> np.ndarray:
    cut = len(x) - _share(grade, (0.3, 0.5, 0.7), len(x), 1, len(x) - 1)
    y = x.copy()
    for t in range(cut, len(x)):
        frame = other[(start + t) % len(other)]
        y[t] = cv2.resize(frame, x.shape[2:0:-1], interpolation=cv2.INTER_AREA)
    return y


def _vanish(clip: np.ndarray, x: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    background = estimate_background(clip)
    if background is None:
        return x
    gone = _share(grade, (0.25, 0.4, 0.6), len(x), 1, len(x))
    begin = int(rng.integers(0, len(x) - gone + 1))
    y = x.copy()
    y[begin : begin + gone] = background
    return y


_MOVED = 24  # grey levels between a pixel's darkest and brightest moment that count as motion
_INPAINT_SIDE = 128  # pixels; inpainting is slow, and what it invents is smooth anyway


def estimate_background(clip: np.ndarray) -> np.ndarray | None:
    """The scene without what moves, uint8 [H, W, 3], or None where nothing or nearly everything moves.

    The temporal median alone leaves a ghost of anything that covers a pixel for half of the clip, so
    the outline of all that moved is filled in from around it.
    """
    moved = (clip.max(axis=0).astype(np.int16) - clip.min(axis=0)).max(axis=-1) > _MOVED
    height, width = moved.shape
    grow = max(3, round(0.06 * min(height, width)) | 1)
    mask = cv2.dilate(moved.astype(np.uint8), np.ones((grow, grow), np.uint8))
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(mask, outlines, -1, 1, thickness=cv2.FILLED)
    if not 0.005 <= mask.mean() <= 0.7:
        return None
    median = np.median(clip, axis=0).astype(np.uint8)
    scale = min(1.0, _INPAINT_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(median, size, interpolation=cv2.INTER_AREA)
    small_mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    filled = cv2.resize(cv2.inpaint(small, small_mask, 3, cv2.INPAINT_TELEA), (width, height))
    return np.where(mask[..., None] > 0, filled, median)


_SIMPLE: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "freeze": _freeze,
    "stutter": _stutter,
    "jitter": _jitter,
    "shuffle": _shuffle,
    "reverse": _reverse,
    "blur": _blur,
    "noise": _noise,
    "flicker": _flicker,
    "fade": _fade,
    "recolour": _recolour,
    "saturate": _saturate,
    "drop": _drop,
    "drift": _drift,
}
