"""Questions whose answers are known: a clip against itself, or its like, with a flaw put in; and ties.

They cold-start, calibrate and test the judge. The answers follow from the damage of each side; pairs on
which two people could disagree are not asked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from reward.config import CORRUPTIONS, DIMENSIONS
from reward.corruptions import FLAWS, GRADES, corrupt
from reward.question import Answer, Question, pick_frames, segment_spans
from reward.sides import Side, Source, compare, reader_of

_VISIBLE_LEVELS = 16  # grey levels
_VISIBLE_SHARE = 0.01  # of the pixels
_THUMBNAIL = 64  # pixels, longer side
_MAX_ATTEMPTS = 200


@dataclass(frozen=True)
class KnownAnswer:
    """A question with its answers (in the question's order) and a reasoning written from what was applied.

    `corruption` and `grade` are those of the worse side; for ties `corruption` is "tie_same", "tie_render"
    or "tie_flaw" and the grade is 0.
    """

    question: Question
    answers: dict[str, Answer]
    reasoning: str
    corruption: str
    grade: int


def make_known_answers(
    sources: Sequence[Source],
    num: int,
    seed: int,
    dimensions: Sequence[str] = DIMENSIONS,
    corruptions: Sequence[str] = CORRUPTIONS,
    segments: int = 0,
    *,
    segment_share: float = 0.25,
    tie_share: float = 0.2,
    wrong_caption_share: float = 0.25,
    both_share: float = 0.3,
    num_shown: int = 8,
) -> list[KnownAnswer]:
    """`num` questions about `sources`, the same for the same arguments.

    `segments` > 0 cuts clips into that many equal segments and asks `segment_share` of the questions about
    one of them, the only one that is flawed. `num_shown` is the number of frames that the judge is shown
    of a clip: flaws that these frames do not show are not asked about. The better side comes first in
    every second question.
    Raises ValueError for unknown dimensions or corruptions, and where the sources allow no more questions.
    """
    _check(sources, dimensions, corruptions)
    maker = _Maker(sources, corruptions, segments, segment_share, num_shown)
    shares = (tie_share, wrong_caption_share if "wrong_caption" in corruptions else 0.0, both_share)
    made: list[KnownAnswer] = []
    for index in range(num):
        rng = np.random.default_rng([seed & (2**63 - 1), index])
        for _ in range(_MAX_ATTEMPTS):
            known = maker.draw(rng, f"known-{seed}-{index:06d}", tuple(dimensions), shares, bool(index % 2))
            if known is not None:
                made.append(known)
                break
        else:
            raise ValueError(
                f"the {len(sources)} source clips allow no more known-answer questions with the corruptions "
                f"{', '.join(corruptions)}: add clips that move, or more captions, or allow more corruptions"
            )
    return made


def _check(sources: Sequence[Source], dimensions: Sequence[str], corruptions: Sequence[str]) -> None:
    if not sources:
        raise ValueError("known answers need at least one source clip; the part of the split is empty")
    unknown = [name for name in dimensions if name not in DIMENSIONS]
    if unknown:
        raise ValueError(
            f"judge.dimensions: no known answers exist for {', '.join(unknown)}; use {', '.join(DIMENSIONS)}"
        )
    unknown = [name for name in corruptions if name not in FLAWS]
    if unknown:
        raise ValueError(f"known_answers.corruptions: unknown {', '.join(unknown)}; use {', '.join(FLAWS)}")


class _Maker:
    """Draws questions; caches thumbnails, on which it checks that a flaw can be seen."""

    def __init__(
        self,
        sources: Sequence[Source],
        corruptions: Sequence[str],
        segments: int,
        segment_share: float,
        num_shown: int,
    ) -> None:
        self.sources = list(sources)
        self.flaws = [name for name in corruptions if name != "wrong_caption"]
        self.segments = segments
        self.segment_share = segment_share
        self.num_shown = num_shown
        self.by_caption: dict[str, list[Source]] = defaultdict(list)
        for source in self.sources:
            self.by_caption[source.caption].append(source)
        self.thumbnails: dict[str, np.ndarray] = {}

    def draw(
        self,
        rng: np.random.Generator,
        question_id: str,
        dimensions: tuple[str, ...],
        shares: tuple[float, float, float],
        worse_first: bool,
    ) -> KnownAnswer | None:
        """One attempt; None where it gives no question with clear answers and visible flaws."""
        source = self.sources[rng.integers(len(self.sources))]
        spans = self._spans(source)
        segment = int(rng.integers(len(spans))) if spans and rng.random() < self.segment_share else None
        span = None if segment is None else spans[segment]
        sides = self._sides(source, rng, shares)
        if sides is None or not all(self._visible(side, span) for side in sides):
            return None
        if span and len({len(self._thumbnail(side.source)) for side in sides}) > 1:
            return None  # a segment of the one clip would not be the same time of the other
        better, worse = sorted(sides, key=lambda side: side.total)
        first, second = (worse, better) if worse_first else (better, worse)
        answers = compare(first, second, dimensions)
        if answers is None:
            return None
        tie = all(answer == "tie" for answer in answers.values())
        return KnownAnswer(
            question=Question(
                id=question_id,
                kind="known",
                prompt=source.caption,
                first=reader_of(first, span),
                second=reader_of(second, span),
                dimensions=dimensions,
                segment=segment,
                group=source.group,
            ),
            answers=answers,
            reasoning=f"first: {first.describe(second)} second: {second.describe(first)}",
            corruption=_tie_name(first, second) if tie else worse.flaw or "wrong_caption",
            grade=0 if tie else worse.grade,
        )

    def _sides(
        self, source: Source, rng: np.random.Generator, shares: tuple[float, float, float]
    ) -> tuple[Side, Side] | None:
        tie_share, wrong_share, both_share = shares
        twins = [s for s in self.by_caption[source.caption] if s.id != source.id]
        # judges meet two different renders far more often than one clip twice
        like = twins[rng.integers(len(twins))] if twins and rng.random() < 0.5 else source
        if rng.random() < tie_share:
            flawed = bool(self.flaws) and rng.random() < 1 / 3
            side = self._flawed(Side(source), rng) if flawed else Side(source)
            return None if side is None else (side, replace(side, source=like, seed=_seed(rng)))
        if not self.flaws or rng.random() < wrong_share:
            wrong = self._wrong(source, rng)
            return None if wrong is None else (Side(source), wrong)
        one = self._flawed(Side(like), rng)
        two = self._flawed(Side(source), rng) if rng.random() < both_share else Side(source)
        return None if one is None or two is None else (two, one)

    def _flawed(self, side: Side, rng: np.random.Generator) -> Side | None:
        name = self.flaws[rng.integers(len(self.flaws))]
        other = None
        if name == "splice":
            others = [s for s in self.sources if s.caption != side.source.caption]
            if not others:
                return None
            other = others[rng.integers(len(others))]
        grade = int(rng.choice(GRADES)) if FLAWS[name].graded else 3
        return replace(side, flaw=name, grade=grade, seed=_seed(rng), other=other)

    def _wrong(self, source: Source, rng: np.random.Generator) -> Side | None:
        """A flawless clip of another caption; grade 1 differs in one word, 2 in two, 3 in more."""
        by_grade: dict[int, list[Source]] = defaultdict(list)
        for other in self.sources:
            if other.caption != source.caption:
                by_grade[min(3, max(1, _num_different_words(source.caption, other.caption)))].append(other)
        if not by_grade:
            return None
        grade = sorted(by_grade)[rng.integers(len(by_grade))]
        return Side(by_grade[grade][rng.integers(len(by_grade[grade]))], wrong=True, grade=grade)

    def _spans(self, source: Source) -> list[tuple[int, int]]:
        if not self.segments:
            return []
        spans = segment_spans(len(self._thumbnail(source)), self.segments)
        return spans if all(stop - start >= 2 for start, stop in spans) else []

    def _thumbnail(self, source: Source) -> np.ndarray:
        if source.id not in self.thumbnails:
            pixels = source.reader().pixels
            if len(pixels) < 2:
                raise ValueError(f"clip {source.id!r} has {len(pixels)} frame; known answers need at least 2")
            scale = min(1.0, _THUMBNAIL / max(pixels.shape[1:3]))
            size = (max(1, round(pixels.shape[2] * scale)), max(1, round(pixels.shape[1] * scale)))
            small = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in pixels]
            self.thumbnails[source.id] = np.stack(small)
        return self.thumbnails[source.id]

    def _visible(self, side: Side, span: tuple[int, int] | None) -> bool:
        """Whether the flaw changes enough pixels of the frames that a judge would be shown."""
        if side.flaw is None:
            return True
        clip = self._thumbnail(side.source)
        span = span or (0, len(clip))
        other = self._thumbnail(side.other) if side.other else None
        rng = np.random.default_rng(side.seed)
        flawed = corrupt(side.flaw, clip, span, side.grade, rng, other)
        begin = max(0, span[0] - 1)
        shown = [begin + i for i in pick_frames(span[1] - begin, self.num_shown)]
        change = np.abs(clip[shown].astype(np.int16) - flawed[shown]).max(axis=(0, 3))
        return bool((change > _VISIBLE_LEVELS).mean() >= _VISIBLE_SHARE)


def _tie_name(first: Side, second: Side) -> str:
    if first.flaw is not None:
        return "tie_flaw"
    return "tie_same" if first.source.id == second.source.id else "tie_render"


def _num_different_words(one: str, other: str) -> int:
    a, b = one.lower().split(), other.lower().split()
    return sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b))


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))
