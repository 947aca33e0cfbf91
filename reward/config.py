"""Settings of the judge: how it is asked, how it votes, how sure it must be, how it learns. Imports no torch.

The judge's own section and that of its training are in files of their own, and known here by name.
"""

from __future__ import annotations

from typing import Any

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from reward.judge_config import DIMENSIONS, JudgeConfig, ScorerConfig
from reward.section import Section
from reward.server_config import ServerConfig, without_transport
from reward.training_config import LoraConfig, TrainJudgeConfig

__all__ = [
    "CORRUPTIONS",
    "DIMENSIONS",
    "CertaintyConfig",
    "JudgeConfig",
    "KnownAnswersConfig",
    "LoraConfig",
    "ScorerConfig",
    "ServerConfig",
    "TrainJudgeConfig",
    "VotingConfig",
    "without_transport",
]

CORRUPTIONS = (
    "wrong_caption",
    "freeze",
    "stutter",
    "jitter",
    "shuffle",
    "reverse",
    "vanish",
    "blur",
    "noise",
    "flicker",
    "fade",
    "recolour",
    "splice",
    "drop",
    "drift",
)


class KnownAnswersConfig(Section):
    """Questions whose answer is known because the flaw was put in."""

    num_train: int = Field(512, ge=0, description="questions of the train part, drawn afresh every round")
    num_calibrate: int = Field(128, ge=0)
    num_gate: int = Field(128, ge=0)
    num_report: int = Field(128, ge=0)
    corruptions: tuple[str, ...] = CORRUPTIONS
    segments: int = Field(0, ge=0, description="equal segments that a clip is cut into; 0 = whole clips only")
    segment_share: float = Field(0.25, ge=0, le=1, description="share of the questions that show one segment")
    tie_share: float = Field(0.2, ge=0, le=1, description="share of the questions that are known ties")
    wrong_caption_share: float = Field(
        0.25, ge=0, le=1, description="share of the other questions in which one clip shows another caption"
    )
    both_share: float = Field(
        0.3, ge=0, le=1, description="share of the others in which both clips are flawed"
    )

    @field_validator("corruptions")
    @classmethod
    def _known(cls, corruptions: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in corruptions if name not in CORRUPTIONS]
        if unknown or not corruptions:
            raise ValueError(f"unknown corruptions {unknown}; choose from {', '.join(CORRUPTIONS)}")
        return corruptions


class VotingConfig(Section):
    """How often a question is asked. A ballot is one vote in each order.

    With `min_ballots` below `num_ballots` a question stops once its votes are clear (reward/stopping.py).
    """

    num_ballots: int = Field(4, ge=1, description="ballots of a question, at most")
    min_ballots: int | None = Field(
        None, ge=1, description="ballots before a question may stop; null = num_ballots: none stops early"
    )
    stop_error: float = Field(
        0.05, gt=0, lt=0.5, description="δ: stop where the other side is better with at most this probability"
    )
    vote_correlation: float = Field(
        0.0, ge=0, le=1, description="ρ: n votes of a question count as n / (1 + (n−1)·ρ) independent ones"
    )

    @property
    def least_ballots(self) -> int:
        """Ballots that every question gets."""
        return self.num_ballots if self.min_ballots is None else self.min_ballots

    @property
    def stops_early(self) -> bool:
        return self.least_ballots < self.num_ballots

    @model_validator(mode="after")
    def _min_within_num(self) -> VotingConfig:
        if self.least_ballots > self.num_ballots:
            raise ValueError(
                f"min_ballots is {self.min_ballots}, but num_ballots only {self.num_ballots}: "
                "lower min_ballots, or raise num_ballots"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_idle_keys(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Where no question stops early, the keys that decide when are left out: they change no vote, so
        they must change no stage's fingerprint either."""
        kept = write(self)
        return kept if self.stops_early else {"num_ballots": kept["num_ballots"]}


class CertaintyConfig(Section):
    """Which verdicts are certain enough to train on."""

    min_probability: float = Field(
        0.7,
        ge=0.5,
        le=1,
        description="of the preferred clip being better, for kinds of question with a calibrator",
    )
    min_margin: float = Field(
        0.5, ge=0, le=1, description="|2·score−1|·(1−flip rate), for kinds that nothing calibrates"
    )
    min_votes: int = Field(2, ge=1, description="votes that are not abstentions")
    min_labels: int = Field(
        50,
        ge=1,
        description="labels that a dimension needs for a slope of its own, else pooled; likewise answered "
        "questions of known segments and of human pairs for a calibrator of their own",
    )
    target_precision: float | None = Field(
        None,
        ge=0.5,
        lt=1,
        description="for kinds with a calibrator, in place of min_probability: the most certain verdicts of "
        "a round are kept, as many as have this mean certainty",
    )
    max_flip_rate: float = Field(
        1.0, ge=0, le=1, description="share of ballots that may flip, for kinds that nothing calibrates"
    )
    isotonic_labels: int | None = Field(
        1000, ge=1, description="labels from which on a curve takes the place of a slope; null = never"
    )
    human_share: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="share of the prompts of data.human_pairs whose pairs calibrate take_take and train "
        "nothing, with those of the calibrate part's prompts; 0 = none",
    )

    @model_serializer(mode="wrap")
    def _without_idle_keys(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keys that came later are left out where they do nothing new: they must change no fingerprint."""
        later = ("target_precision", "max_flip_rate", "isotonic_labels", "human_share")
        idle = {name: type(self).model_fields[name].default for name in later}
        return {k: v for k, v in write(self).items() if k not in idle or v != idle[k]}
