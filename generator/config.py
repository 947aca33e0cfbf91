"""Settings of the generator: which model, how it samples, how it is updated. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GeneratorConfig(_Section):
    """A text-to-video model in diffusers' folder format."""

    family: Literal["wan", "cogvideox", "ltx", "hunyuan"] = "wan"
    model: str = Field(description="a diffusers folder, a hub id, or embedded:NAME")
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["dense", "sparse_causal", "sparse_causal_own"] = Field(
        "dense",
        description="sparse_causal = a latent frame sees frame 0 and the one before it (HuViDPO); _own = and "
        "itself. A model that was trained with dense attention needs training to get used to it",
    )
    max_text_tokens: int = Field(
        512,
        ge=1,
        description="prompt tokens that the transformer sees, padding included, within the family's limit",
    )
    embedded_guidance: float = Field(
        6.0, gt=0, description="the guidance scale that HunyuanVideo is told, in training as in sampling"
    )
    frame_rate: float = Field(
        25.0, gt=0, description="frames a second in the eyes of LTX-Video; give data.clip.fps"
    )


class SamplingConfig(_Section):
    """How a clip is denoised."""

    num_steps: int = Field(30, ge=1)
    guidance_scale: float = Field(
        1.0, ge=1.0, description="1 = no classifier-free guidance, one forward a step"
    )
    batch_size: int = Field(
        8, ge=1, description="clips denoised together; changes no clip beyond float rounding"
    )


class LoraConfig(_Section):
    """A PEFT adapter on the transformer."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    target_modules: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")


class LimitsConfig(_Section):
    """When an update stops before its last step and keeps the last checkpoint within bounds; null = never."""

    drift: float | None = Field(
        None,
        gt=0,
        description="of E‖v − v_base‖² per value on held-out winners, against the campaign's base model",
    )
    displacement: float | None = Field(
        None, gt=0, description="of the rise of held-out winners' error over the reference's"
    )
    motion_gap: float | None = Field(
        None,
        gt=0,
        description="by what share losers may move more than winners before the update refuses to start: "
        "such pairs teach stillness",
    )

    @property
    def any(self) -> bool:
        return any(limit is not None for limit in (self.drift, self.displacement, self.motion_gap))


class UpdateConfig(_Section):
    """One round of preference optimisation.

    `beta` multiplies the difference of mean squared errors with the factor ½ of Diffusion-DPO's appendix
    (DenseDPO, RealDPO); diffusers' research script leaves the ½ out, so its 2500 is 5000 here.
    """

    method: Literal["preference", "supervised"] = Field(
        "preference", description="supervised = fine-tuning on the anchors alone, a control arm"
    )
    lora: LoraConfig | None = Field(None, description="null = full weights")
    reference: Literal["parent", "base", "ema"] = Field(
        "parent", description="ema = a slow average of the policy, from the parent on (RealDPO)"
    )
    ema_decay: float = Field(0.999, ge=0, lt=1, description="of the reference, each ema_every steps")
    ema_every: int = Field(100, ge=1)
    objective: Literal["dpo", "kto"] = Field("dpo", description="kto = Diffusion-KTO on the clips of pairs")
    beta: float = Field(500.0, ge=0)
    error: Literal["prediction", "x0"] = Field(
        "prediction",
        description="x0 = RealDPO's weighted error of the clean estimate; the same for velocities, not for ε",
    )
    reduction: Literal["clip", "frame", "frame_sum"] = Field(
        "clip", description="one margin a clip, one a latent frame (DenseDPO), or their sum (its Eq. 7)"
    )
    half: bool = Field(True, description="the ½ before β; false as in diffusers' research script")
    winner_likelihood: float = Field(
        0.0, ge=0, description="λ1 of Dual-IPO: weight of the winner's own denoising error"
    )
    real_likelihood: float = Field(
        0.0, ge=0, description="λ2 of Dual-IPO: weight of the denoising error of anchors"
    )
    preference_weight: float = Field(
        1.0, ge=0, description="weight of the preference term; 0 leaves the likelihood terms"
    )
    learning_rate: float = Field(1e-5, gt=0)
    round_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="factor on the learning rate from round to round: a better model has more to lose",
    )
    supervised_rounds: int = Field(
        0,
        ge=0,
        description="first rounds that fine-tune on the anchors alone: preferences teach little while a "
        "model's own takes are far from the anchors",
    )
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(10, ge=0)
    schedule: Literal["constant", "linear"] = Field(
        "linear",
        description="linear = down to 0 over the round's steps; a constant rate leaves noise in the weights",
    )
    average: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of a running average of the weights, which is what is compared and kept; 0 = off",
    )
    num_steps: int = Field(200, ge=1)
    pairs_per_step: int = Field(8, ge=1, description="winners a step, each against losers_per_winner losers")
    losers_per_winner: int = Field(
        1, ge=1, description="N of RealDPO: losers that share a winner, its noise and its forward"
    )
    anchors_per_step: int = Field(
        8, ge=1, description="anchors drawn for the real-likelihood or supervised term"
    )
    micro_batches: int = Field(
        1, ge=1, description="parts that a step is cut into to save memory; the gradient stays the same"
    )
    reference_draws: int = Field(
        0,
        ge=0,
        description="draws of noise and level a pair goes through again and again, so that the reference's "
        "errors are computed once; 0 = new ones in every epoch",
    )
    activation_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, about a third more time"
    )
    compile: bool = Field(False, description="torch.compile the transformer; its start takes minutes")
    limits: LimitsConfig = LimitsConfig()
    max_grad_norm: float = Field(1.0, gt=0)
    timesteps: Literal["logit_normal", "uniform"] = "logit_normal"
    sigma_range: tuple[float, float] = Field(
        (0.0, 1.0), description="noise levels drawn, after the model's shift"
    )
    held_out_share: float = Field(
        0.05, ge=0, lt=1, description="share of the prompts whose pairs choose the checkpoint"
    )
    evaluate_every: int = Field(20, ge=1)
    checkpoint_every: int = Field(50, ge=1)
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="autocast dtype of the training forward"
    )

    @model_validator(mode="after")
    def _range(self) -> UpdateConfig:
        low, high = self.sigma_range
        if not 0 <= low < high <= 1:
            raise ValueError(f"sigma_range must satisfy 0 ≤ low < high ≤ 1, got {list(self.sigma_range)}")
        return self

    @model_validator(mode="after")
    def _still_reference(self) -> UpdateConfig:
        if self.reference == "ema" and self.reference_draws:
            raise ValueError(
                "reference_draws keeps the reference's errors, but reference ema moves: set it to 0"
            )
        return self

    @property
    def real_weight(self) -> float:
        """Weight of the anchors' denoising error."""
        return 1.0 if self.method == "supervised" else self.real_likelihood

    @property
    def needs_pairs(self) -> bool:
        """Whether any term reads preference pairs; the control arms on real clips alone do without."""
        return self.method == "preference" and (self.preference_weight > 0 or self.winner_likelihood > 0)

    def in_round(self, number: int) -> UpdateConfig:
        """These settings as round `number` ≥ 1 uses them."""
        method = "supervised" if number <= self.supervised_rounds else self.method
        rate = self.learning_rate * self.round_decay ** (number - 1)
        return self.model_copy(update={"learning_rate": rate, "method": method})
