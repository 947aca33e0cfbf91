"""CogVideoX-2b, 5b and 5b-I2V: v-prediction over a variance-preserving schedule, latents [B, T', C, H', W'].

Its noise levels are timesteps. Its schedulers look ᾱ up by whole timesteps, so that a start at η between two
of them needs a table with that level in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from generator.condition import Condition
from generator.config import GeneratorConfig
from generator.models.base import LatentGrid, VideoModel
from generator.parametrisation import EpsilonPrediction, VPrediction

if TYPE_CHECKING:
    from diffusers import ModelMixin

KINDS = {"v_prediction": VPrediction, "epsilon": EpsilonPrediction}


class CogVideoXModel(VideoModel):
    """See `VideoModel`."""

    pipelines = ("CogVideoXPipeline", "CogVideoXImageToVideoPipeline")

    def __init__(self, pipe: Any, config: GeneratorConfig, device: torch.device) -> None:
        network, scheduler = pipe.transformer.config, pipe.scheduler
        if network.patch_size_t is not None:
            raise ValueError(
                f"generator.model {config.model}: CogVideoX 1.5 is not supported, as it pads clips by a "
                "latent frame without pixels; use CogVideoX-2b, CogVideoX-5b or CogVideoX-5b-I2V"
            )
        kind = scheduler.config.get("prediction_type")
        if "CogVideoX" not in type(scheduler).__name__ or kind not in KINDS:
            raise ValueError(
                f"generator.model {config.model}: {type(scheduler).__name__} with prediction_type {kind} is "
                "not supported; use CogVideoXDDIMScheduler or CogVideoXDPMScheduler, v_prediction or epsilon"
            )
        self.most_text_tokens = network.max_text_seq_length
        counted = not network.use_rotary_positional_embeddings or network.use_learned_positional_embeddings
        if counted and config.max_text_tokens < self.most_text_tokens:
            raise ValueError(
                f"generator.max_text_tokens {config.max_text_tokens}: the positions of {config.model} are "
                f"made for {self.most_text_tokens} tokens; leave the key out"
            )
        super().__init__(pipe, config, device)
        self.needs_first_frame = type(pipe).__name__ == "CogVideoXImageToVideoPipeline"
        self.parametrisation = KINDS[kind](scheduler.alphas_cumprod)
        self._alphas: Tensor = scheduler.alphas_cumprod
        self._clean_before: Tensor | None = None  # what the second-order solver remembers of its last step
        self._t_before: Tensor | None = None

    @property
    def grid(self) -> LatentGrid:
        vae = self.pipe.vae.config
        pixels, stride = self.pipe.vae_scale_factor_spatial, vae.temporal_compression_ratio
        # the autoencoder works through pairs of latent frames: it decodes an even number of them to 4k frames
        unit = pixels * self.transformer.config.patch_size
        return LatentGrid(vae.latent_channels, stride, pixels, 2 * stride, unit)

    def normalise(self, latents: Tensor) -> Tensor:
        return self.pipe.vae.config.scaling_factor * latents

    def denormalise(self, latents: Tensor) -> Tensor:
        return 1 / self.pipe.vae.config.scaling_factor * latents

    def with_first_frame(self, condition: Condition, frame: Tensor, num_frames: int) -> Condition:
        if not self.needs_first_frame:
            return super().with_first_frame(condition, frame, num_frames)
        latents = self.encode(frame[:, :, None])
        num_padded = (num_frames - 1) // self.grid.frame_stride
        nothing = torch.zeros_like(latents).repeat(1, 1, num_padded, 1, 1)
        return condition.with_tensors(first_frame=torch.cat([latents, nothing], dim=2))

    def forward(
        self, transformer: ModelMixin, x_sigma: Tensor, sigma: Tensor, condition: Condition
    ) -> Tensor:
        dtype, x = transformer.dtype, x_sigma
        if self.needs_first_frame:
            x = torch.cat([x, self.first_frame_of(condition).to(x)], dim=1)
        positions = None
        if transformer.config.use_rotary_positional_embeddings:
            pixels = self.pipe.vae_scale_factor_spatial
            height, width = x.shape[3] * pixels, x.shape[4] * pixels
            positions = self.pipe._prepare_rotary_positional_embeddings(
                height, width, x.shape[2], self.device
            )
        prediction = transformer(
            hidden_states=x.transpose(1, 2).to(dtype),
            encoder_hidden_states=condition["text"].to(dtype),
            timestep=sigma.to(self.device),
            image_rotary_emb=positions,
            return_dict=False,
        )[0]
        return prediction.transpose(1, 2)

    def levels_of(self, sigma: Tensor) -> Tensor:
        """σ is here the share of the timesteps: `uniform` is what the model was trained with."""
        return sigma * (len(self._alphas) - 1)

    def schedule(self, num_steps: int, latent_shape: tuple[int, ...], eta: float | None) -> list[float]:
        scheduler = self.scheduler
        scheduler.alphas_cumprod = self._alphas
        self._clean_before = self._t_before = None
        self.set_timesteps(num_steps, latent_shape)
        if eta is None:
            return [float(t) for t in scheduler.timesteps]
        level = self.parametrisation.level_of(eta)
        below = scheduler.timesteps[scheduler.timesteps < level]
        # A step goes from t to t − gap. So η's ᾱ takes the place one gap above the first timestep below it.
        gap = len(self._alphas) // num_steps
        start = gap + (int(below[0]) if len(below) else -1)
        table = torch.cat([self._alphas, self._alphas[-1:].expand(gap)])
        table[start] = self.parametrisation.alpha_bar(torch.tensor([level]))[0]
        scheduler.alphas_cumprod = table
        scheduler.timesteps = torch.cat([below.new_tensor([start]), below])
        return [level, *(float(t) for t in below)]

    @property
    def is_stochastic(self) -> bool:
        return type(self.scheduler).__name__ == "CogVideoXDPMScheduler"

    def step(self, prediction: Tensor, t: Tensor, x: Tensor, noise: list[torch.Generator] | None) -> Tensor:
        # the pipeline's layout, since the solver draws its noise in it
        v, x = prediction.float().transpose(1, 2), x.transpose(1, 2)
        if not self.is_stochastic:
            return self.scheduler.step(v, t, x, return_dict=False)[0].transpose(1, 2)
        x, self._clean_before = self.scheduler.step(
            v, self._clean_before, t, self._t_before, x, generator=noise, return_dict=False
        )
        self._t_before = t
        return x.transpose(1, 2)
