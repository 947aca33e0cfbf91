"""Motion, flicker and subject drift of any clip, from pixels and without a trained model.

Motion is Farneback's optical flow, not the RAFT of VBench's dynamic degree.

These are our own measures, cheap enough for every take of every round. They follow the ideas of known
benchmarks but not their numbers: do not compare them with published ones.
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

from loop.subject import subject_drift

_LONGEST_SIDE = 160  # pixels: larger clips are measured at this size
_FASTEST = 0.05  # share of pixels that speaks for the motion, so that a small object on a still ground counts


def measure(frames: np.ndarray) -> dict[str, float]:
    """motion_magnitude, motion_smoothness, flicker and subject_drift of uint8 [T, H, W, 3], T ≥ 3.

    Raises ValueError for other input.
    """
    grey = _grey(frames)
    flows = np.stack([_flow(a, b) for a, b in pairwise(grey)])
    return {
        "motion_magnitude": _magnitude(flows),
        "motion_smoothness": _smoothness(grey),
        "flicker": _flicker(grey),
        "subject_drift": subject_drift(frames),
    }


def _magnitude(flows: np.ndarray) -> float:
    """Speed of the fastest 5 % of pixels, mean over frame pairs: pixels a frame as a share of the diagonal.

    flows: [T − 1, H, W, 2]. A still is 0; an object that crosses the frame corner to corner in 16 steps 1/16.
    """
    speed = np.linalg.norm(flows, axis=-1).reshape(len(flows), -1)
    count = max(1, round(_FASTEST * speed.shape[1]))
    fastest = np.partition(speed, -count, axis=1)[:, -count:]
    return float(fastest.mean() / np.hypot(*flows.shape[1:3]))


def _smoothness(grey: np.ndarray) -> float:
    """1 − the error of guessing each frame from its two neighbours, as a share of what changes between these.

    The guess moves both neighbours half of the flow between them. Even motion is near 1; a frame that comes
    too early or too late, repeats or jumps is not where the guess puts it. A still cannot be uneven: 1.
    """
    height, width = grey.shape[1:]
    xs, ys = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    errors, changes = [], []
    for before, now, after in zip(grey[:-2], grey[1:-1], grey[2:], strict=True):
        forward, backward = _flow(before, after), _flow(after, before)
        guess = (
            _sample(before, xs - forward[..., 0] / 2, ys - forward[..., 1] / 2)
            + _sample(after, xs - backward[..., 0] / 2, ys - backward[..., 1] / 2)
        ) / 2
        errors.append(np.abs(guess - now).mean())
        # two frames that repeat each other leave the change to their neighbour in the middle
        changes.append(
            max(np.abs(after - before).mean(), np.abs(now - before).mean(), np.abs(after - now).mean())
        )
    change = float(np.mean(changes))
    noise = 0.5  # grey levels: below it there is no motion, only rounding and compression
    return float(np.clip(1 - max(0.0, np.mean(errors) - noise) / max(change, noise), 0, 1))


def _flicker(grey: np.ndarray) -> float:
    """Mean second difference of the frames' mean brightness, as a share of 255: a steady fade is 0."""
    brightness = grey.mean(axis=(1, 2))
    return float(np.abs(np.diff(brightness, n=2)).mean() / 255)


def _grey(frames: np.ndarray) -> np.ndarray:
    """uint8 [T, H, W, 3] → float32 [T, h, w] in [0, 255], the longer side at most _LONGEST_SIDE."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) < 3:
        raise ValueError(
            f"frames must be uint8 [T, H, W, 3] of at least 3 frames, got {frames.dtype} {list(frames.shape)}"
        )
    height, width = frames.shape[1:3]
    scale = min(1.0, _LONGEST_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames]
    if scale < 1:
        small = [cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in small]
    return np.stack(small).astype(np.float32)


def _flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Where each pixel of `before` has moved in `after`: float32 [H, W, 2], (x, y) in pixels."""
    window = int(np.clip(min(before.shape) // 4, 7, 15))
    return cv2.calcOpticalFlowFarneback(
        before.astype(np.uint8),
        after.astype(np.uint8),
        None,  # type: ignore[call-overload]  # no first guess
        pyr_scale=0.5,
        levels=3,
        winsize=window,
        iterations=3,
        poly_n=5,
        poly_sigma=1.1,
        flags=0,
    )


def _sample(image: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    return cv2.remap(
        image, xs.astype(np.float32), ys.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
