"""Settings of the judge's training. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from reward.section import Section


class LoraConfig(Section):
    """A PEFT adapter on the language model; it is merged before the judge is saved."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


class TrainJudgeConfig(Section):
    """One round of the judge: supervised on known answers and seed reasoning, SRPO, then GRPO if wanted."""

    lora: LoraConfig | None = Field(None, description="null = full weights")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the training forward")
    num_steps: int = Field(100, ge=0, description="supervised steps a round")
    batch_size: int = Field(16, ge=1, description="questions a supervised step")
    learning_rate: float = Field(1e-4, gt=0)
    warmup_steps: int = Field(10, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    micro_batch_size: int | None = Field(
        None, ge=1, description="rows a forward; null = a whole step's. Both kinds of step"
    )
    gradient_checkpointing: bool = False
    preference_steps: int = Field(0, ge=0, description="SRPO steps a round, from the second round on")
    preference_batch_size: int = Field(8, ge=1, description="pairs of reasoning paths a SRPO step")
    preference_learning_rate: float = Field(1e-5, gt=0)
    beta: float = Field(0.1, gt=0, description="β of the DPO loss in SRPO")
    pairs_per_question: int = Field(
        2, ge=1, description="right-against-wrong pairs taken from one question, at most"
    )
    tau: float | None = Field(
        None, gt=0, description="of PCE = σ((R−Q)/τ), nats a token; null = the standard deviation of R (ours)"
    )
    min_pce: float = Field(
        0.5, ge=0, le=1, description="pairs at or below are dropped (Dual-IPO keeps PCE > 0.5)"
    )
    log_every: int = Field(10, ge=1)
    checkpoint_every: int | None = Field(
        None,
        ge=1,
        description="steps between checkpoints, from which a killed training goes on; a multiple of "
        "log_every; null = none, it starts again",
    )
    cold_start_steps: int | None = Field(
        None, ge=0, description="supervised steps while no trained judge is in force; null = num_steps"
    )
    seed_every_round: bool = Field(
        False,
        description="data.seed_reasoning is learnt in every round, not in the cold start alone",
    )
    own_questions: int | None = Field(
        None,
        ge=1,
        description="for SRPO the judge answers this many questions of the round before again; null = the "
        "votes of label serve, of which two an order are needed",
    )
    own_ballots: int = Field(4, ge=2, description="ballots of each of them")
    own_min_margin: float = Field(
        0.25, ge=0, le=1, description="vote margin of those of them that tell right paths from wrong ones"
    )
    known_share: float = Field(
        0.0, ge=0, lt=1, description="of SRPO's rows, from fresh known answers: right by truth, not by vote"
    )
    known_ballots: int = Field(
        4, ge=1, description="ballots in which the judge answers a known question, for known_share"
    )
    real_share: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="of SRPO's rows, at most, from a real clip against a take, with the real one as the "
        "right answer; null = such verdicts are pseudo-labels like any other",
    )
    grpo_steps: int = Field(0, ge=0, description="GRPO steps a round, on known answers")
    grpo_batch_size: int = Field(32, ge=2, description="replies a GRPO step")
    grpo_replies: int = Field(8, ge=2, description="replies to one question, the group of GRPO")
    grpo_learning_rate: float = Field(1e-5, gt=0)
    grpo_reward: Literal["overall", "mean"] = Field(
        "overall", description="a right answer is one in `overall`, or the share of dimensions that are right"
    )

    @model_validator(mode="after")
    def _batches(self) -> TrainJudgeConfig:
        batches = ["batch_size", "preference_batch_size", *(["grpo_batch_size"] if self.grpo_steps else [])]
        if self.micro_batch_size is not None:
            for name in batches:
                if getattr(self, name) % self.micro_batch_size:
                    raise ValueError(
                        f"{name} must be a multiple of micro_batch_size ({self.micro_batch_size})"
                    )
        if self.checkpoint_every is not None and self.checkpoint_every % self.log_every:
            # a log row is a mean since the last one, which a checkpoint does not hold
            raise ValueError(f"checkpoint_every must be a multiple of log_every ({self.log_every})")
        if self.grpo_steps and self.grpo_batch_size % self.grpo_replies:
            raise ValueError(f"grpo_batch_size must be a multiple of grpo_replies ({self.grpo_replies})")
        return self

    @model_validator(mode="after")
    def _shares(self) -> TrainJudgeConfig:
        if self.known_share + (self.real_share or 0.0) >= 1:
            raise ValueError(
                f"known_share {self.known_share} and real_share {self.real_share} leave nothing for the "
                "judge's own votes; their sum must be below 1"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_idle_keys(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keys of what is switched off are left out: they change no judge, so they must change no stage's
        fingerprint either."""
        idle = {
            "checkpoint_every": self.checkpoint_every is None,
            "cold_start_steps": self.cold_start_steps is None,
            "seed_every_round": not self.seed_every_round,
            **dict.fromkeys(("own_questions", "own_ballots", "own_min_margin"), self.own_questions is None),
            "known_share": self.known_share == 0,
            "known_ballots": self.known_share == 0,
            "real_share": self.real_share is None,
            **{name: self.grpo_steps == 0 for name in type(self).model_fields if name.startswith("grpo_")},
        }
        return {name: value for name, value in write(self).items() if not idle.get(name, False)}
