"""Measures from pixels whether a clip of the embedded world shows what its caption says.

It scores prompts for the curves and nothing else: no training stage may import it (a test holds that).
Every part is a ramp rather than a threshold, so that a small improvement of a clip is a small rise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from loop.embedded import world

PARTS = ("colour", "shape", "direction", "smoothness", "permanence")

_PATCH = 19  # pixels, odd: the window around an object's centroid that is compared with the templates
_TEMPLATE_BLUR = 0.6  # pixels: what the codec and an autoencoder do to an edge


@dataclass(frozen=True)
class _Track:
    """What is seen of the main object in each of T frames."""

    seen: np.ndarray  # [T] in [0, 1]: is there an object at all
    alone: np.ndarray  # [T] in [0, 1]: is it the only one
    mass: np.ndarray  # [T] its brightness against the background, summed over pixels
    place: np.ndarray  # [T, 2] centroid (x, y) in pixels; interpolated where nothing is seen
    weight: np.ndarray  # [T, H, W] soft coverage of the main object in [0, 1]


def score(frames: np.ndarray, caption: str) -> dict[str, float]:
    """Marks in [0, 1] for uint8 [T, 32, 32, 3] (T ≥ 5): PARTS and "total".

    colour, shape: share of the seen object, frame by frame, that has the caption's.
    direction: how far it travels the caption's way (full marks from 70 % of the anchors' way), less for drift
    to the side. smoothness: even steps; 0 for a still. permanence: exactly one object of plausible size in
    every frame, and of steady size and brightness.
    total: mean over frames of (one object there × its colour × its shape), times steadiness, direction and
    smoothness: a clip must have everything right at once. Raises ValueError for other captions or shapes.
    """
    colour, shape, direction = world.parse_caption(caption)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (world.SIZE, world.SIZE, 3):
        raise ValueError(
            f"frames must be uint8 [T, {world.SIZE}, {world.SIZE}, 3], "
            f"got {frames.dtype} {list(frames.shape)}"
        )
    if len(frames) < 5:
        raise ValueError(f"the oracle needs at least 5 frames to see a motion, got {len(frames)}")
    difference = frames.astype(np.float32) - np.asarray(world.BACKGROUND, dtype=np.float32)  # [T, H, W, 3]
    track = _follow(difference)
    if track.seen.sum() < 2.0:
        return dict.fromkeys((*PARTS, "total"), 0.0)
    colour_T = _colour_marks(difference, track.weight, colour)
    shape_T = _shape_marks(track, shape)
    steady = _steadiness(track)
    marks = {
        "colour": _mean(colour_T, track.seen),
        "shape": _mean(shape_T, track.seen),
        "direction": _direction_mark(track, direction),
        "smoothness": _smoothness_mark(track),
        "permanence": float(np.mean(track.seen * track.alone)) * steady,
    }
    there = float(np.mean(track.seen * track.alone * colour_T * shape_T))
    return marks | {"total": there * steady * marks["direction"] * marks["smoothness"]}


def _follow(difference: np.ndarray) -> _Track:
    """Find the main object in every frame; difference: frames minus the background, float32 [T, H, W, 3]."""
    distance = np.linalg.norm(difference, axis=-1)  # [T, H, W], about 200 on a shape
    num_frames, height, width = distance.shape
    ys, xs = np.mgrid[:height, :width].astype(np.float32)
    weight = np.zeros_like(distance)
    seen, alone, mass = np.zeros(num_frames), np.zeros(num_frames), np.zeros(num_frames)
    place = np.full((num_frames, 2), np.nan)
    last: np.ndarray | None = None
    for t, distance_t in enumerate(distance):
        blobs, labels, _, centres = cv2.connectedComponentsWithStats(
            (distance_t > 75).astype(np.uint8), connectivity=8
        )
        if blobs < 2:
            continue
        masses = np.bincount(labels.ravel(), weights=distance_t.ravel(), minlength=blobs)[1:]
        # of two like blobs the nearer one is the object of the frame before, and the other is the intruder
        near = 1.0 if last is None else np.exp(-np.linalg.norm(centres[1:] - last, axis=1) / 8)
        main = 1 + int(np.argmax(masses * near))
        region = cv2.dilate((labels == main).astype(np.uint8), np.ones((3, 3), np.uint8))
        inside = np.where((region > 0) & ((labels == 0) | (labels == main)), distance_t, 0.0)
        level = _upper_quartile(distance_t[labels == main])
        weight[t] = np.clip((inside - 0.15 * level) / (0.7 * level), 0, 1)
        area = float(weight[t].sum())
        mass[t] = float(inside.sum())
        soft = np.maximum(inside - 0.15 * level, 0)
        place[t] = (soft * xs).sum() / soft.sum(), (soft * ys).sum() / soft.sum()
        last = place[t]
        plausible = _ramp(area, 20, 42) * (1 - _ramp(area, 160, 250))
        seen[t] = plausible * _ramp(level, 60, 120)
        # two objects that touch make one blob, too wide for any of the shapes (their radii are 4.3 to 5)
        radius = float(np.sqrt((weight[t] * ((xs - last[0]) ** 2 + (ys - last[1]) ** 2)).sum() / area))
        alone[t] = _ramp(float(masses[main - 1] / masses.sum()), 0.65, 0.93) * (1 - _ramp(radius, 5.8, 7.2))
    return _Track(seen, alone, mass, _fill(place), weight)


def _colour_marks(difference: np.ndarray, weight: np.ndarray, colour: str) -> np.ndarray:
    """[T]: the share of the object's coloured pixels whose palette colour is `colour`.

    Angles in the chroma plane: the codec's subsampling blurs chroma, which shortens the vector but keeps
    its angle.
    """
    inside = weight > 0.05
    frame = np.nonzero(inside)[0]  # [P] which frame each of the object's pixels is in
    chroma = _chroma(difference[inside])  # [P] complex
    palette = _chroma(np.asarray(list(world.COLOURS.values()), dtype=np.float32) - world.BACKGROUND)  # [6]
    angle = np.angle(chroma[:, None] * np.conj(palette))  # [P, 6]
    closeness = np.exp(-((angle / 0.3) ** 2) / 2)
    share = closeness[:, list(world.COLOURS).index(colour)] / (closeness.sum(axis=1) + 1e-3)
    vote = weight[inside] * np.abs(chroma)
    num_frames = len(weight)
    votes = np.bincount(frame, weights=vote, minlength=num_frames)
    right = np.bincount(frame, weights=vote * share, minlength=num_frames)
    vivid = votes / (weight.sum(axis=(1, 2)) + 1e-6)  # mean saturation: about 100 on an anchor, 0 on grey
    return right / (votes + 1e-6) * _ramp(vivid, 8, 32)


def _shape_marks(track: _Track, shape: str) -> np.ndarray:
    """[T]: how surely the object's outline is the one of `shape` among all shapes, by template matching."""
    patches = np.stack(
        [
            cv2.getRectSubPix(w, (_PATCH, _PATCH), (float(x), float(y)))
            for w, (x, y) in zip(track.weight, track.place, strict=True)
        ]
    ).reshape(len(track.weight), -1)
    patches = patches - patches.mean(axis=1, keepdims=True)
    patches /= np.linalg.norm(patches, axis=1, keepdims=True) + 1e-6
    match = (patches @ _templates().T).reshape(len(patches), len(world.SHAPES), -1).max(axis=2)  # [T, S]
    sure = np.exp(25 * (match - match.max(axis=1, keepdims=True)))
    mine = world.SHAPES.index(shape)
    return sure[:, mine] / sure.sum(axis=1) * _ramp(match[:, mine], 0.5, 0.85)


def _direction_mark(track: _Track, direction: str) -> float:
    """The way made along the caption's axis, less the drift to the side."""
    x, y = _displacement(track)
    dx, dy = world.DIRECTIONS[direction]
    along, across = x * dx + y * dy, abs(x * dy) + abs(y * dx)
    sideways = _ramp(across, 0.15 * world.TRAVEL, 0.7 * world.TRAVEL)
    return float(_ramp(along, 0.05 * world.TRAVEL, 0.7 * world.TRAVEL) * (1 - sideways))


def _displacement(track: _Track) -> np.ndarray:
    """(x, y) pixels from first to last frame of the straight line fitted to the seen track."""
    times = np.arange(len(track.place), dtype=float)
    centred = times - np.average(times, weights=track.seen)
    slope = (track.seen * centred) @ track.place / (track.seen @ centred**2)
    return slope * (len(times) - 1)


def _smoothness_mark(track: _Track) -> float:
    """Second differences that are small against the pace, and motion throughout."""
    steps = np.diff(track.place, axis=0)
    jolts = np.linalg.norm(np.diff(steps, axis=0), axis=1)  # pixels per frame²
    # the anchors' step keeps a slow clip's rounding errors from looking like jerks
    nominal = world.TRAVEL / len(steps)
    pace = max(float(np.linalg.norm(_displacement(track))) / len(steps), 0.6 * nominal)
    # root mean square: a track held for h frames and caught up in one jump scores √(2h), however it is cut
    even = 1 - _ramp(float(np.sqrt(np.mean(jolts**2))) / pace, 0.5, 3.0)
    reach = np.linalg.norm(track.place[4:] - track.place[:-4], axis=1) / (4 * nominal)
    moving = float(np.mean(_ramp(reach, 0.12, 0.45)))
    return float(even) * moving


def _steadiness(track: _Track) -> float:
    """1 for an object whose size and brightness stay, falling with their spread over the seen frames."""
    there = track.seen > 0.3
    if there.sum() < 2:
        return 0.0
    mass = track.mass[there]
    spread = float(mass.std() / mass.mean())
    return 1 - float(_ramp(spread, 0.10, 0.70))


@lru_cache(maxsize=1)
def _templates() -> np.ndarray:
    """Unit patches [S * K, P * P]: every shape at K sizes, each with its centroid in the middle."""
    half = (_PATCH - 1) / 2
    patches = []
    for shape in world.SHAPES:
        for radius in (0.9, 1.0, 1.1):
            mask = world.shape_mask(shape, half, half, size=_PATCH, radius=radius * world.RADIUS)
            ys, xs = np.mgrid[:_PATCH, :_PATCH]
            x, y = (mask * xs).sum() / mask.sum(), (mask * ys).sum() / mask.sum()
            mask = world.shape_mask(
                shape, 2 * half - x, 2 * half - y, size=_PATCH, radius=radius * world.RADIUS
            )
            patch = cv2.GaussianBlur(mask, (0, 0), _TEMPLATE_BLUR).ravel()
            patch = patch - patch.mean()
            patches.append(patch / np.linalg.norm(patch))
    return np.stack(patches).astype(np.float32)


def _chroma(rgb: np.ndarray) -> np.ndarray:
    """The chroma plane of ITU-R BT.601 as complex numbers, Cb + i Cr; [..., 3] → [...]."""
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return (blue - luma) * 0.564 + 1j * (red - luma) * 0.713


def _fill(place: np.ndarray) -> np.ndarray:
    """Straight lines over the frames (NaN) in which nothing was found."""
    known = np.flatnonzero(~np.isnan(place[:, 0]))
    if len(known) == 0:
        return np.zeros_like(place)
    times = np.arange(len(place))
    return np.stack([np.interp(times, known, place[known, axis]) for axis in (0, 1)], axis=1)


def _upper_quartile(values: np.ndarray) -> float:
    rank = 3 * len(values) // 4
    return float(np.partition(values, rank)[rank])


def _mean(marks: np.ndarray, weights: np.ndarray) -> float:
    return float((marks * weights).sum() / weights.sum())


def _ramp(value: Any, low: float, high: float) -> Any:
    """0 up to low, 1 from high, a straight line between; of a number or an array of any shape."""
    return np.clip((value - low) / (high - low), 0.0, 1.0)
