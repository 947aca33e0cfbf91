"""One side of a known-answer question: a clip with or without a flaw, and what two such sides compare to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from reward.corruptions import FLAWS, STEADY, corrupt
from reward.question import Answer, ClipReader, Frames, neutralise

_BASE_DIMENSIONS = ("text_alignment", "motion", "visual_quality")
_OVERALL_WEIGHTS = {"text_alignment": 1.5, "motion": 1.0, "visual_quality": 1.0}  # ours
_TIE = 0.1  # damage differences up to here are a tie
_CLEAR = 0.3  # from here on there is a better side
_CLEAR_ACROSS = 0.6  # the same, where two different flaws are compared: grades of a kind, not of a scale


@dataclass(frozen=True)
class Source:
    """A flawless clip. Sources of one caption are renders of the same thing; `group` as in Question."""

    id: str
    caption: str
    group: str
    reader: ClipReader


@dataclass(frozen=True)
class CorruptedReader:
    """The frames of `base` with a flaw in `span` (None = in the whole clip)."""

    base: ClipReader
    corruption: str
    grade: int
    seed: int
    span: tuple[int, int] | None = None
    other: ClipReader | None = None

    @property
    def key(self) -> str:
        other = self.other.key if self.other else ""
        return f"{self.base.key}|{self.corruption}:{self.grade}:{self.seed}:{self.span}:{other}"

    def __call__(self) -> Frames:
        frames = self.base()
        rng = np.random.default_rng(self.seed)
        other = self.other().pixels if self.other else None
        span = self.span or (0, len(frames.pixels))
        return replace(frames, pixels=corrupt(self.corruption, frames.pixels, span, self.grade, rng, other))


@dataclass(frozen=True)
class SegmentReader:
    """Frames [start, stop) of `base`, and the frame before them, without which a first jump is unseen."""

    base: ClipReader
    start: int
    stop: int

    @property
    def key(self) -> str:
        return f"{self.base.key}|{self.start}-{self.stop}"

    def __call__(self) -> Frames:
        frames = self.base()
        return replace(frames, pixels=frames.pixels[max(0, self.start - 1) : self.stop])


@dataclass(frozen=True)
class Side:
    """One clip of a question under construction."""

    source: Source
    wrong: bool = False  # shows another caption than the prompt's
    flaw: str | None = None
    grade: int = 0
    seed: int = 0
    other: Source | None = None

    def damage(self, dimension: str) -> float:
        total = FLAWS["wrong_caption"].damage(dimension, 3) if self.wrong else 0.0
        return total + (FLAWS[self.flaw].damage(dimension, self.grade) if self.flaw else 0.0)

    @property
    def total(self) -> float:
        return sum(weight * self.damage(dimension) for dimension, weight in _OVERALL_WEIGHTS.items())

    def describe(self, other: Side) -> str:
        """The sentence about this side in a reasoning, e.g. "a red ring moves left, frozen.".

        Where `other` has the same flaw in another grade, the word says which has more of it.
        """
        word = FLAWS[self.flaw].word if self.flaw else STEADY
        if self.flaw is not None and self.flaw == other.flaw and self.grade != other.grade:
            word = f"{'more' if self.grade > other.grade else 'less'} {word}"
        return f"{neutralise(self.source.caption).rstrip('.')}, {word}."


def compare(first: Side, second: Side, dimensions: Sequence[str]) -> dict[str, Answer] | None:
    """The answers that follow from the damage of two sides; None where a wanted one is not clear."""
    base: dict[str, Answer | None] = {d: _compare_dimension(first, second, d) for d in _BASE_DIMENSIONS}
    answers: dict[str, Answer] = {}
    for dimension in dimensions:
        answer = _compare_overall(first, second, base) if dimension == "overall" else base[dimension]
        if answer is None:
            return None
        answers[dimension] = answer
    return answers


def _compare_dimension(first: Side, second: Side, dimension: str) -> Answer | None:
    damages = first.damage(dimension), second.damage(dimension)
    difference = damages[1] - damages[0]
    comparable = first.flaw == second.flaw or 0.0 in damages
    if abs(difference) >= (_CLEAR if comparable else _CLEAR_ACROSS):
        return "first" if difference > 0 else "second"
    return "tie" if comparable and abs(difference) <= _TIE else None


def _compare_overall(first: Side, second: Side, base: dict[str, Answer | None]) -> Answer | None:
    found = set(base.values())
    if None in found:
        return None
    if found == {"tie"}:
        return "tie"
    difference = second.total - first.total
    if {"first", "second"} <= found and abs(difference) < _CLEAR_ACROSS:
        return None  # better in one thing, worse in another: no clear winner
    return "first" if difference > 0 else "second"


def reader_of(side: Side, span: tuple[int, int] | None) -> ClipReader:
    """The side as a judge is shown it: whole, or the frames of `span`."""
    reader: ClipReader = side.source.reader
    if side.flaw is not None:
        other = side.other.reader if side.other else None
        reader = CorruptedReader(reader, side.flaw, side.grade, side.seed, span, other)
    return reader if span is None else SegmentReader(reader, *span)
