"""Judges with a vice each, as plug-ins (judge.target tests.planted_judges:NAME), to see that alarms name it.

Each looks at pixels, or at nothing; none is trained. `Quality` has one vice: it never reads the caption.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from reward.question import Ask, ClipReader, Reply, Vote, vote_of


class Planted:
    """Prefers the clip of the higher score, to the last digit."""

    def __init__(self, config) -> None:
        self.dimensions = config.dimensions

    def score(self, pixels: np.ndarray) -> float:
        raise NotImplementedError

    def answer(self, ask: Ask) -> str:
        first, second = (self.score(_pixels(reader)) for reader in ask.shown)
        return "tie" if first == second else "first" if first > second else "second"

    def vote(self, asks: list[Ask]) -> list[Vote]:
        return [
            vote_of(a, Reply(dict.fromkeys(a.question.dimensions, self.answer(a)), "", None)) for a in asks
        ]

    def identity(self) -> str:
        return type(self).__name__

    def close(self) -> None:
        pass


class LovesFrozen(Planted):
    def score(self, pixels):
        return -_motion(pixels)


class LovesSaturated(Planted):
    def score(self, pixels):
        return _saturation(pixels)


class LovesBlur(Planted):
    def score(self, pixels):
        return -_sharpness(pixels)


class Quality(Planted):
    """Likes clips that move, are sharp and are not garish, whatever they show: it ignores the caption."""

    def score(self, pixels):
        return np.log(_motion(pixels) + 0.1) + np.log(_sharpness(pixels) + 0.1) - 0.02 * _saturation(pixels)


class Position(Planted):
    def answer(self, ask):
        return "first"


class Coin(Planted):
    def answer(self, ask):
        return "first" if ask.seed % 2 else "second"


@lru_cache(maxsize=4096)
def _pixels_of(key: str, reader: ClipReader) -> np.ndarray:
    return reader().pixels


def _pixels(reader: ClipReader) -> np.ndarray:
    return _pixels_of(reader.key, reader)


def _motion(pixels: np.ndarray) -> float:
    return float(np.abs(np.diff(pixels.astype(np.int16), axis=0)).mean())


def _saturation(pixels: np.ndarray) -> float:
    return float(np.mean([cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)[..., 1].mean() for frame in pixels]))


def _sharpness(pixels: np.ndarray) -> float:
    grey = pixels.mean(axis=-1)
    return float(np.abs(np.diff(grey, axis=1)).mean() + np.abs(np.diff(grey, axis=2)).mean())
