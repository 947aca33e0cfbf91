"""A judge for `judge.type: scorer`: every clip is scored alone, two scores make votes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from reward.config import JudgeConfig
from reward.frames import shown_json
from reward.judges.transformers import identity_of
from reward.question import Answer, Ask, ClipReader, Question, Reply, Vote, vote_of
from reward.scorers.checklist import checklist_digest
from reward.scorers.head import Mix
from reward.scorers.ties import draw, probabilities

if TYPE_CHECKING:
    from reward.scorers.encoding import ClipEncoder


class Scorer(Protocol):
    """What gives a clip its raw outputs, [O] of float64, and says how they make dimensions."""

    mix: Mix

    @property
    def encoder(self) -> ClipEncoder: ...

    @property
    def thresholds(self) -> np.ndarray: ...

    def raw(self, reader: ClipReader, question: Question) -> np.ndarray: ...

    def close(self) -> None: ...


class ScorerJudge:
    """Votes of a point-wise scorer.

    A scorer is deterministic and sees one clip at a time, so the order of a question decides nothing, and
    asking twice would say the same twice. Its doubt is in the law of Bradley-Terry with ties, which gives
    first, second and tie a probability each; so every vote draws its answers from that law with its ask's own
    seed, and the shares of many ballots estimate it. Ballots cost nothing but the draw: a clip is scored once
    for each prompt. Flips between the two orders are chance alone. One uniform serves all dimensions of a
    vote, so that a vote that leans to the first clip does so in all of them. judge.temperature sharpens or
    flattens the law as it does a model's replies; at 0 all votes are the most probable answer.
    The reasoning of a vote lists both clips' scores and the law in numbers.
    """

    def __init__(self, config: JudgeConfig) -> None:
        """Raises ValueError for a model, head or checklist that cannot score."""
        self.config = config
        self.scorer = _open(config)
        self._raw: dict[tuple[str, bool, str], np.ndarray] = {}
        self._seen: dict[tuple[str, bool], tuple[list[float], tuple[int, int]]] = {}
        self._identity: str | None = None

    def vote(self, asks: Sequence[Ask]) -> list[Vote]:
        """One vote for each ask, in the same order. Raises ValueError for prompts too long."""
        return [self._one(ask) for ask in asks]

    def identity(self) -> str:
        """sha256 of weights, head, checklist, the processor's files and the settings that decide votes."""
        if self._identity is None:
            found = [identity_of(self.config)]
            if self.config.scoring.checklist is not None:
                found.append(checklist_digest(self.config))
            self._identity = hashlib.sha256("\x00".join(found).encode()).hexdigest()
        return self._identity

    def close(self) -> None:
        self.scorer.close()

    def _one(self, ask: Ask) -> Vote:
        raw_first, raw_second = (self._score(reader, ask.question) for reader in ask.shown)
        mix = self.scorer.mix
        differences = mix.logits_DO @ (raw_first - raw_second)
        laws = {
            dimension: probabilities(float(difference), float(threshold))
            for dimension, difference, threshold in zip(
                mix.dimensions, differences, self.scorer.thresholds, strict=True
            )
        }
        uniform = np.random.default_rng(ask.seed).random()
        answers: dict[str, Answer] = {
            dimension: draw(laws[dimension], uniform, self.config.temperature)
            for dimension in ask.question.dimensions
        }
        said = [
            f"{name}: {_listed(mix, raw)}" for name, raw in (("first", raw_first), ("second", raw_second))
        ]
        chances = ", ".join(
            f"{name} {law['first']:.2f}/{law['second']:.2f}/{law['tie']:.2f}" for name, law in laws.items()
        )
        reasoning = f"{said[0]}; {said[1]}; first/second/tie: {chances}"
        return vote_of(ask, Reply(answers, reasoning, None), None, self._told(ask))

    def _told(self, ask: Ask) -> str:
        """Which frames both clips were scored by, as Vote.shown; noted when they are first scored."""
        keys = [(reader.key, ask.question.segment is not None) for reader in ask.shown]
        return shown_json([self._seen[key][0] for key in keys], [self._seen[key][1] for key in keys])

    def _score(self, reader: ClipReader, question: Question) -> np.ndarray:
        key = (reader.key, question.segment is not None, question.prompt)
        if key not in self._raw:
            self._raw[key] = self.scorer.raw(reader, question)
            seen = self.scorer.encoder.seen(reader, question)
            self._seen[key[:2]] = seen.times, seen.size
        return self._raw[key]


def _open(config: JudgeConfig) -> Scorer:
    if config.scoring.head == "checklist":
        from reward.scorers.yes_no import ChecklistScorer

        return ChecklistScorer(config)
    from reward.scorers.linear import LinearScorer

    return LinearScorer(config)


def _listed(mix: Mix, raw_O: np.ndarray) -> str:
    scores = mix.scores(raw_O).tolist()
    return ", ".join(f"{name} {score:.2f}" for name, score in zip(mix.dimensions, scores, strict=True))
