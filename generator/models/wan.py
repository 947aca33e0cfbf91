"""Wan text-to-video (2.1, and 2.2 with one transformer): flow matching over a causal 3-D autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from generator.condition import Condition
from generator.config import GeneratorConfig
from generator.models.base import DTYPES, VideoModel

if TYPE_CHECKING:
    from diffusers import ModelMixin


class WanModel(VideoModel):
    """See `VideoModel`.

    Latent frame 0 is video frame 0; latent frame i ≥ 1 is video frames 4(i−1)+1 … 4i at stride 4.
    """

    @classmethod
    def load(cls, config: GeneratorConfig, device: torch.device) -> WanModel:
        from diffusers import WanPipeline

        try:
            pipe = WanPipeline.from_pretrained(config.model, dtype=DTYPES[config.dtype], use_safetensors=True)
        except OSError as error:
            raise ValueError(
                f"generator.model: cannot load {config.model!r} as a Wan pipeline with safetensors: {error}"
            ) from error
        if pipe.transformer is None or pipe.config.boundary_ratio is not None or pipe.config.expand_timesteps:
            raise ValueError(
                f"generator.model {config.model}: only Wan checkpoints with one plain transformer "
                "are supported"
            )
        pipe.set_progress_bar_config(disable=True)
        return cls(pipe, config, device)

    @property
    def _stride(self) -> int:
        return self.pipe.vae.config.scale_factor_temporal

    def _statistics(self) -> tuple[Tensor, Tensor]:
        vae = self.pipe.vae.config
        shape = (1, vae.z_dim, 1, 1, 1)
        mean = torch.tensor(vae.latents_mean, device=self.device).view(shape)
        std = torch.tensor(vae.latents_std, device=self.device).view(shape)
        return mean, std

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        mean, std = self._statistics()
        moments = self.pipe.vae.encode(video.to(self.device, self.pipe.vae.dtype)).latent_dist
        return (moments.mode().float() - mean) / std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics()
        # Dividing by the reciprocal is what the pipeline does; the last bit must agree with it.
        video = self.pipe.vae.decode((latents / (1.0 / std) + mean).to(self.pipe.vae.dtype)).sample
        return video.float().clamp(-1, 1)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        embeds, _ = self.pipe.encode_prompt(
            prompt=list(prompts),
            do_classifier_free_guidance=False,
            max_sequence_length=self.config.max_text_tokens,
            device=self.device,
        )
        return Condition({"text": embeds})

    def forward(
        self, transformer: ModelMixin, x_sigma: Tensor, sigma: Tensor, condition: Condition
    ) -> Tensor:
        dtype = transformer.dtype
        timestep = sigma.to(self.device, torch.float32) * self.scheduler.config.num_train_timesteps
        return transformer(
            hidden_states=x_sigma.to(dtype),
            timestep=timestep,
            encoder_hidden_states=condition["text"].to(dtype),
            return_dict=False,
        )[0]

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        spatial = self.pipe.vae.config.scale_factor_spatial
        patch = self.transformer.config.patch_size
        unit = max(16, spatial * patch[1])
        if (num_frames - 1) % self._stride:
            low = (num_frames - 1) // self._stride * self._stride + 1
            raise ValueError(
                f"data.clip.num_frames {num_frames}: this model takes {self._stride}k+1 frames, "
                f"such as {low} or {low + self._stride}"
            )
        if height % unit or width % unit:
            raise ValueError(
                f"data.clip: height {height} and width {width} must be multiples of {unit} for this model"
            )
        return (
            self.pipe.vae.config.z_dim,
            (num_frames - 1) // self._stride + 1,
            height // spatial,
            width // spatial,
        )

    def latent_segments(self, num_frames: int, frames_per_segment: int) -> list[int]:
        num_segments = max(1, (num_frames - 1) // frames_per_segment)
        num_latents = (num_frames - 1) // self._stride + 1
        # Latent frame i ≥ 1 shows frames 4(i−1)+1 … 4i; frame 0 alone belongs to the first segment.
        middles = [0.0] + [(i - 1) * self._stride + (self._stride + 1) / 2 for i in range(1, num_latents)]
        return [min(num_segments - 1, max(0, int((m - 1) // frames_per_segment))) for m in middles]
