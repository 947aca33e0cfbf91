"""Probes: questions in which a judge with a known vice gives itself away. No judge is trained on them.

A clean clip against itself frozen, oversaturated or blurred, as severe as our grades go, tells which of the
two a judge prefers. Two clean clips that are asked about twice, with the caption of either, tell whether it
reads the caption: who does not is right exactly once, whatever else it likes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np

from reward.corruptions import corrupt
from reward.question import ClipReader, Question
from reward.sides import CorruptedReader, Source

FLAWS = {"frozen": "freeze", "saturated": "saturate", "blurred": "blur"}  # vice → corruption
CAPTION = "wrong_caption"
_GRADE = 3
_VISIBLE_LEVELS = 16  # grey levels
_VISIBLE_SHARE = 0.01  # of the pixels


@dataclass(frozen=True)
class Probe:
    """better_first: whether the question's first clip is the clean one, or the one of the caption."""

    vice: str
    question: Question
    better_first: bool


def make_probes(sources: Sequence[Source], num: int, seed: int, dimensions: tuple[str, ...]) -> list[Probe]:
    """At most `num` clips a flaw, each once, and `num` pairs of captions, twice each; the same every time.

    Clips that a flaw does not change to the eye (a still frozen, a grey one saturated) are passed over.
    """
    rng = np.random.default_rng([seed & (2**63 - 1), 0x9B0BE])
    if not num or not sources:
        return []
    order = [sources[i] for i in rng.permutation(len(sources))]
    probes: list[Probe] = []
    for vice, corruption in FLAWS.items():
        flawed = [(s, CorruptedReader(s.reader, corruption, _GRADE, seed)) for s in order]
        shown = [pair for pair in flawed if _is_visible(*pair)][:num]
        for number, (source, reader) in enumerate(shown):
            name = f"probe-{seed}-{vice}-{number:04d}"
            probes.append(
                _probe(
                    vice, name, source.caption, (source.reader, reader), dimensions, source.group, number % 2
                )
            )
    return probes + _caption_probes(order, num, seed, dimensions, rng)


def _caption_probes(
    sources: Sequence[Source], num: int, seed: int, dimensions: tuple[str, ...], rng: np.random.Generator
) -> list[Probe]:
    """The captions that differ most first: to tell those apart is the least that reading takes."""
    by_caption: dict[str, list[Source]] = defaultdict(list)
    for source in sources:
        by_caption[source.caption].append(source)
    pairs = list(combinations(sorted(by_caption), 2))
    mixed = [pairs[i] for i in rng.permutation(len(pairs))]
    mixed.sort(key=lambda pair: -_difference(*pair))
    probes = []
    for number, captions in enumerate(mixed[:num]):
        one, other = (by_caption[c][rng.integers(len(by_caption[c]))] for c in captions)
        for turn, (right, wrong) in enumerate(((one, other), (other, one))):
            name = f"probe-{seed}-{CAPTION}-{number:04d}-{turn}"
            clips = right.reader, wrong.reader
            # the clip of the second question's caption takes the place of the first's: sides tell nothing
            probes.append(
                _probe(CAPTION, name, right.caption, clips, dimensions, f"pair-{number:04d}", number % 2)
            )
    return probes


def _probe(
    vice: str,
    name: str,
    prompt: str,
    clips: tuple[ClipReader, ClipReader],
    dimensions: tuple[str, ...],
    group: str,
    worse_first: int,
) -> Probe:
    better, worse = clips
    first, second = (worse, better) if worse_first else (better, worse)
    question = Question(name, "probe", prompt, first, second, dimensions, group=group)
    return Probe(vice, question, not worse_first)


def _is_visible(source: Source, flawed: CorruptedReader) -> bool:
    clip = source.reader().pixels
    if len(clip) < 2:
        return False
    scale = min(1.0, 64 / max(clip.shape[1:3]))
    size = (max(1, round(clip.shape[2] * scale)), max(1, round(clip.shape[1] * scale)))
    small = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in clip])
    rng = np.random.default_rng(flawed.seed)
    after = corrupt(flawed.corruption, small, (0, len(small)), flawed.grade, rng)
    change = np.abs(small.astype(np.int16) - after).max(axis=(0, 3))
    return bool((change > _VISIBLE_LEVELS).mean() >= _VISIBLE_SHARE)


def _difference(one: str, other: str) -> int:
    return len(set(one.lower().split()) ^ set(other.lower().split()))
