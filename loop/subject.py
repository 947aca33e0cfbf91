"""Subject drift: whether what moves in a clip keeps its colours, from pixels and without a trained model.

It follows the question of VBench's subject consistency, which compares DINO features of whole frames, but not
its numbers: this one sees colours alone, and of the moving region alone.
"""

from __future__ import annotations

import cv2
import numpy as np

_LONGEST_SIDE = 160  # pixels: larger clips are measured at this size
_CHANGE = 24  # grey levels of 255, in the channel that differs most: below it is noise and compression
_SMALLEST = 1 / 500  # of the frame: where less of it moves, nothing does
_ABSENT = 0.1  # of the subject's largest share over the frames: below, it is not there
_BINS = 4  # a channel


def subject_drift(frames: np.ndarray) -> float:
    """Mean cosine distance of the subject's colours in every other frame to those where it is first seen.

    frames: uint8 [T, H, W, 3]. In [0, 1]: 0 for a still, and for a subject that keeps its colours however it
    moves, turns or bends; a frame in which it shares no colour with the first one, or is not there, counts 1.

    The moving region is all pixels that change at some time. The subject's colours are those that are more
    frequent there, over the whole clip, than among the pixels at rest: each bin b of a frame's histogram of
    the region is weighed by max(0, 1 − rest_b / region_b). Where the camera moves or the light of the whole
    frame changes, no pixel is at rest, and all colours count.
    """
    small = small_frames(frames)
    spread = small.max(axis=0).astype(int) - small.min(axis=0)
    moving = spread.max(axis=-1) > _CHANGE
    if moving.mean() < _SMALLEST:
        return 0.0
    shares = _histograms(small[:, moving])
    # a pixel at rest is as it is on average
    rest = 0 if moving.all() else _histograms(small[:, ~moving].mean(axis=0, keepdims=True))[0]
    weights = np.clip(1 - rest / np.maximum(shares.mean(axis=0), 1e-12), 0, 1)
    colours = shares * weights
    amount = colours.sum(axis=1)
    seen = amount > _ABSENT * amount.max()
    if not seen.any():  # all that moves has the colours of what is at rest
        return 0.0
    unit = colours / np.maximum(np.linalg.norm(colours, axis=1, keepdims=True), 1e-12)
    distances = np.where(seen, 1 - unit @ unit[np.argmax(seen)], 1.0)
    return float(np.clip(distances.sum() / (len(small) - 1), 0, 1))


def small_frames(frames: np.ndarray) -> np.ndarray:
    """uint8 [T, H, W, 3] → uint8 [T, h, w, 3], the longer side at most 160 pixels."""
    height, width = frames.shape[1:3]
    scale = min(1.0, _LONGEST_SIDE / max(height, width))
    if scale == 1:
        return frames
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in frames])


def _histograms(pixels: np.ndarray) -> np.ndarray:
    """Shares [T, 64] of 4 levels a channel among each frame's pixels [T, N, 3] of 0 to 255; rows add up to 1.

    A pixel is shared between the levels it lies between, so that noise moves the histogram by little.
    """
    place = np.clip((pixels.astype(np.float32) + 0.5) * _BINS / 256 - 0.5, 0, _BINS - 1)
    lower = np.minimum(place.astype(int), _BINS - 2)
    part = place - lower
    to = (1 - part, part)  # the lower level and the upper one
    num_bins = _BINS**3
    row = num_bins * np.arange(len(pixels))[:, None]
    first = row + lower[..., 0] * _BINS**2 + lower[..., 1] * _BINS + lower[..., 2]
    found = np.zeros(num_bins * len(pixels))
    for i, j, k in np.ndindex(2, 2, 2):
        shares = to[i][..., 0] * to[j][..., 1] * to[k][..., 2]
        bins = first + (i * _BINS**2 + j * _BINS + k)
        found += np.bincount(bins.ravel(), shares.ravel(), minlength=len(found))
    return found.reshape(len(pixels), num_bins) / pixels.shape[1]
