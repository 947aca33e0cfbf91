"""The contract between retake and a model family, and what all families share.

A `VideoModel` wraps a diffusers pipeline: it moves pixels to normalised latents and back, embeds
prompts, predicts, and steps as the pipeline does. `PolicyWeights` adds which weights are trained.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from generator.condition import Condition
from generator.config import GeneratorConfig
from generator.models.policy import DTYPES, LORA_FILE, PolicyWeights
from generator.parametrisation import FlowMatching

if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = ["DTYPES", "LORA_FILE", "LatentGrid", "VideoModel", "load_model"]


@dataclass(frozen=True)
class LatentGrid:
    """How an autoencoder divides a clip, and which clips a family takes."""

    channels: int
    frame_stride: int  # latent frame 0 is video frame 0, each further one the next `frame_stride` frames
    pixel_stride: int
    frame_unit: int  # clips have k · frame_unit + 1 frames
    pixel_unit: int  # heights and widths are multiples of it


class VideoModel(PolicyWeights, ABC):
    """One generator.

    Videos are float [B, 3, T, H, W] in [−1, 1], latents float32 [B, C, T', H', W'] normalised to about unit
    variance, a `Condition` has one row a clip. `sigma` is a noise level, float [B] in the unit of
    `parametrisation`: σ in [0, 1] for flow matching, the timestep for variance-preserving schedules.
    """

    parametrisation: Any = FlowMatching
    pipelines: tuple[str, ...]  # the diffusers pipelines that a family reads, by class name
    most_text_tokens = 512
    needs_first_frame = False  # whether every condition must come from `with_first_frame`

    def __init__(self, pipe: Any, config: GeneratorConfig, device: torch.device) -> None:
        self.pipe = pipe.to(device)
        self.config = config
        self.device = device
        self.experts_seen = set()
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
        for name in self.experts:
            setattr(self.pipe, name, self._made_ready(getattr(self.pipe, name)))

    # What a family fills in -----------------------------------------------------------------

    @property
    @abstractmethod
    def grid(self) -> LatentGrid:
        """Strides and sizes."""

    @abstractmethod
    def normalise(self, latents: Tensor) -> Tensor:
        """The autoencoder's latents → about unit variance."""

    @abstractmethod
    def denormalise(self, latents: Tensor) -> Tensor:
        """The inverse of `normalise`."""

    @abstractmethod
    def forward(
        self, transformer: ModelMixin, x_sigma: Tensor, sigma: Tensor, condition: Condition
    ) -> Tensor:
        """The network's raw prediction, the shape of `x_sigma`."""

    # What a family may replace --------------------------------------------------------------

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        """What the transformer needs to know of each prompt."""
        text, *_ = self.pipe.encode_prompt(
            prompt=list(prompts),
            do_classifier_free_guidance=False,
            max_sequence_length=self.num_text_tokens,
            device=self.device,
        )
        return Condition({"text": text})

    def with_first_frame(self, condition: Condition, frame: Tensor, num_frames: int) -> Condition:
        """The condition of clips that begin with `frame`, float [B, 3, H, W] in [−1, 1].

        `num_frames` is the clips' length. A model made for text alone sees the frame's latents, clean, in the
        place of its first noisy ones (HuViDPO); it needs training to make use of them.
        """
        return condition.with_tensors(held_frame=self.encode(frame[:, :, None]))

    def expert_of(self, sigma: Tensor) -> Tensor:
        """Which of `experts` predicts at a noise level, long [B]."""
        return torch.zeros(len(sigma), dtype=torch.long, device=sigma.device)

    def shift_for(self, latent_shape: tuple[int, ...]) -> float:
        """The shift of noise levels for clips of [C, T', H', W']."""
        return self.shift

    def levels_of(self, sigma: Tensor) -> Tensor:
        """Noise levels in the unit of `parametrisation` for a training's σ in [0, 1], float32 [B] both."""
        return sigma

    def set_timesteps(self, num_steps: int, latent_shape: tuple[int, ...]) -> None:
        """Sets the scheduler up as the pipeline does for clips of [C, T', H', W']."""
        self.scheduler.set_timesteps(num_steps, device=self.device)

    def schedule(self, num_steps: int, latent_shape: tuple[int, ...], eta: float | None) -> list[float]:
        """Sets the scheduler up, to start at exactly η if one is given; returns the level told at each step.

        User sigmas would be shifted a second time by the scheduler, so for a start at exactly η the levels
        below η are kept from the ordinary schedule and η is put before them.
        """
        self.set_timesteps(num_steps, latent_shape)
        scheduler = self.scheduler
        num_levels = scheduler.config.num_train_timesteps
        if eta is not None:
            start = min(eta, float(scheduler.sigmas[0]))  # some solvers stop a little short of pure noise
            below = scheduler.sigmas < start
            later = scheduler.timesteps[below[:-1].to(scheduler.timesteps.device)]
            scheduler.timesteps = torch.cat([later.new_tensor([start * num_levels]), later])
            scheduler.sigmas = torch.cat([scheduler.sigmas.new_tensor([start]), scheduler.sigmas[below]])
            scheduler.num_inference_steps = len(scheduler.timesteps)
        scheduler.set_begin_index(0)
        if scheduler.timesteps.is_floating_point():
            return [float(s) for s in scheduler.sigmas[:-1]]
        # some solvers tell the network whole timesteps while they step between the exact levels
        return [int(t) / num_levels for t in scheduler.timesteps]

    @property
    def is_stochastic(self) -> bool:
        """Whether `step` draws noise, so that sampling needs the clips' seeds."""
        return bool(self.scheduler.config.get("stochastic_sampling"))

    def step(self, prediction: Tensor, t: Tensor, x: Tensor, noise: list[torch.Generator] | None) -> Tensor:
        """The latents after the scheduler's step at its timestep `t`; `noise` has a generator a clip."""
        drawn = {"generator": noise} if self.is_stochastic else {}
        return self.scheduler.step(prediction, t, x, return_dict=False, **drawn)[0]

    # What all families share ----------------------------------------------------------------

    @classmethod
    def load(cls, config: GeneratorConfig, device: torch.device) -> VideoModel:
        """The pipeline from safetensors, no remote code. Raises ValueError for one of another family."""
        import diffusers

        wanted = " or ".join(cls.pipelines)
        try:
            found = diffusers.DiffusionPipeline.load_config(config.model).get("_class_name")
            if found not in cls.pipelines:
                raise ValueError(
                    f"generator.family {config.family}: {config.model} is a {found} by its model_index.json, "
                    f"not a {wanted}; correct generator.family or generator.model"
                )
            pipe = getattr(diffusers, found).from_pretrained(
                config.model, dtype=DTYPES[config.dtype], use_safetensors=True
            )
        except OSError as error:
            raise ValueError(
                f"generator.model: cannot load {config.model!r} as a {wanted} with safetensors: {error}"
            ) from error
        pipe.set_progress_bar_config(disable=True)
        return cls(pipe, config, device)

    @property
    def scheduler(self) -> Any:
        return self.pipe.scheduler

    @property
    def shift(self) -> float:
        return float(self.scheduler.config.get("shift") or self.scheduler.config.get("flow_shift") or 1.0)

    @property
    def num_text_tokens(self) -> int:
        """Prompt tokens that the transformer sees: what is configured, within the family's limit."""
        return min(self.config.max_text_tokens, self.most_text_tokens)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Normalised latents of a video (the posterior's mode, so that equal clips give equal latents)."""
        moments = self.pipe.vae.encode(video.to(self.device, self.pipe.vae.dtype)).latent_dist
        return self.normalise(moments.mode().float())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """The video of normalised latents, clamped to [−1, 1]."""
        video = self.decode_raw(self.denormalise(latents).to(self.pipe.vae.dtype))
        return video.float().clamp(-1, 1)

    def decode_raw(self, latents: Tensor) -> Tensor:
        """The autoencoder's own decoding."""
        return self.pipe.vae.decode(latents).sample

    def release_encoders(self) -> None:
        """Frees the weights that turn pixels and prompts into latents and embeddings, and back.

        Training needs none of them; what they gave is kept by the caller. Their configurations stay.
        """
        for name, part in self.pipe.components.items():
            if isinstance(part, torch.nn.Module) and name not in self.experts:
                part.to("meta")

    def predict(self, x_sigma: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The policy's prediction."""
        return self._through(self.transformers, x_sigma, sigma, condition)

    def predict_reference(self, x_sigma: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The frozen reference's prediction, no graph. Call it before `predict`: it switches adapters."""
        with torch.no_grad(), self._as_reference() as transformers:
            return self._through(transformers, x_sigma, sigma, condition)

    def _through(
        self, transformers: Sequence[ModelMixin], x_sigma: Tensor, sigma: Tensor, condition: Condition
    ) -> Tensor:
        """Each row through the expert of its noise level."""
        if len(transformers) == 1:
            return self._forward(transformers[0], x_sigma, sigma, condition)
        which = self.expert_of(sigma)
        order, parts, idle = [], [], []
        for number, transformer in enumerate(transformers):
            rows = (which == number).nonzero().flatten()
            if len(rows):
                if torch.is_grad_enabled():
                    self.experts_seen.add(number)
                order.append(rows)
                parts.append(self._forward(transformer, x_sigma[rows], sigma[rows], condition.rows(rows)))
            elif self.is_sharded:  # other ranks may have rows for it, and its weights are gathered by all
                one = torch.zeros(1, dtype=torch.long, device=x_sigma.device)
                idle.append(self._forward(transformer, x_sigma[one], sigma[one], condition.rows(one)))
        prediction = torch.cat(parts)[torch.cat(order).argsort()]
        return prediction + 0 * sum(part.sum() for part in idle) if idle else prediction

    def _forward(
        self, transformer: ModelMixin, x_sigma: Tensor, sigma: Tensor, condition: Condition
    ) -> Tensor:
        """`forward`, with a first frame that is given to a model made for text alone."""
        known = condition.get("held_frame")
        if known is None:
            return self.forward(transformer, x_sigma, sigma, condition)
        prediction = self.forward(transformer, self.hold_first_frame(x_sigma, known), sigma, condition)
        return self.lead_to_first_frame(prediction, x_sigma, sigma, known)

    @staticmethod
    def hold_first_frame(x: Tensor, known: Tensor | None) -> Tensor:
        """Noisy latents as a network sees them whose first frame is given, clean, as [B, C, 1, H', W']."""
        return x if known is None else torch.cat([known.to(x), x[:, :, 1:]], dim=2)

    def lead_to_first_frame(
        self, prediction: Tensor, x: Tensor, sigma: Tensor, known: Tensor | None
    ) -> Tensor:
        """The prediction with the one in a given first frame that ends exactly there.

        The network says nothing about a frame that it is given. So sampling arrives at that frame, and
        training takes nothing from it.
        """
        if known is None:
            return prediction
        there = self.parametrisation.leading_to(known.to(x), x[:, :, :1], sigma)
        return torch.cat([there.to(prediction), prediction[:, :, 1:]], dim=2)

    def first_frame_of(self, condition: Condition) -> Tensor:
        """The first frame in a condition. Raises ValueError if it has none."""
        known = condition.get("first_frame")
        if known is None:
            raise ValueError(
                f"generator.model {self.config.model}: an image-to-video model needs a first frame for every "
                "clip (VideoModel.with_first_frame); for text alone use a text-to-video checkpoint"
            )
        return known

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, T', H', W') of a clip. Raises ValueError for sizes that the model cannot take."""
        grid = self.grid
        if (num_frames - 1) % grid.frame_unit:
            low = (num_frames - 1) // grid.frame_unit * grid.frame_unit + 1
            raise ValueError(
                f"data.clip.num_frames {num_frames}: this model takes {grid.frame_unit}k+1 frames, "
                f"such as {low} or {low + grid.frame_unit}"
            )
        if height % grid.pixel_unit or width % grid.pixel_unit:
            raise ValueError(
                f"data.clip: height {height} and width {width} must be multiples of {grid.pixel_unit} "
                "for this model"
            )
        return (
            grid.channels,
            (num_frames - 1) // grid.frame_stride + 1,
            height // grid.pixel_stride,
            width // grid.pixel_stride,
        )

    def latent_segments(self, num_frames: int, frames_per_segment: int) -> list[int]:
        """The segment index of each latent frame, length T'."""
        stride = self.grid.frame_stride
        num_segments = max(1, (num_frames - 1) // frames_per_segment)
        num_latents = (num_frames - 1) // stride + 1
        # At stride 4 latent frame i ≥ 1 shows frames 4(i−1)+1 … 4i; frame 0 alone is in the first segment.
        middles = [0.0] + [(i - 1) * stride + (stride + 1) / 2 for i in range(1, num_latents)]
        return [min(num_segments - 1, max(0, int((m - 1) // frames_per_segment))) for m in middles]


def load_model(config: GeneratorConfig, checkpoint: Path | None = None, device: str = "cpu") -> VideoModel:
    """The generator of a config, with a round's checkpoint if one is given."""
    from generator.models.cogvideox import CogVideoXModel
    from generator.models.hunyuan import HunyuanModel
    from generator.models.ltx import LTXModel
    from generator.models.wan import WanModel

    families: dict[str, type[VideoModel]] = {
        "wan": WanModel,
        "cogvideox": CogVideoXModel,
        "ltx": LTXModel,
        "hunyuan": HunyuanModel,
    }
    model = families[config.family].load(config, torch.device(device))
    if checkpoint is not None:
        model.load_checkpoint(checkpoint)
    return model
