"""LTX-Video, from text or from a first frame: flow matching over tokens of a highly compressed clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from generator.condition import Condition
from generator.models.base import LatentGrid, VideoModel

if TYPE_CHECKING:
    from diffusers import ModelMixin


class LTXModel(VideoModel):
    """See `VideoModel`. Its noise levels are shifted by the number of tokens of a clip."""

    pipelines = ("LTXPipeline", "LTXImageToVideoPipeline")
    most_text_tokens = 128

    @property
    def grid(self) -> LatentGrid:
        vae = self.pipe.vae
        stride, pixels = vae.temporal_compression_ratio, vae.spatial_compression_ratio
        unit = max(32, pixels * self.transformer.config.patch_size)  # 32 is the pipeline's own check
        return LatentGrid(vae.config.latent_channels, stride, pixels, stride, unit)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        vae = self.pipe.vae
        return vae.latents_mean.view(1, -1, 1, 1, 1).float(), vae.latents_std.view(1, -1, 1, 1, 1).float()

    def normalise(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics()
        return (latents - mean) * self.pipe.vae.config.scaling_factor / std

    def denormalise(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics()
        return latents * std / self.pipe.vae.config.scaling_factor + mean

    def decode_raw(self, latents: Tensor) -> Tensor:
        if not self.pipe.vae.config.timestep_conditioning:
            return super().decode_raw(latents)
        # later versions' decoders also denoise; at timestep 0, the pipeline's default, no noise is added
        return self.pipe.vae.decode(latents, latents.new_zeros(len(latents))).sample

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        embeds, mask, _, _ = self.pipe.encode_prompt(
            prompt=list(prompts),
            do_classifier_free_guidance=False,
            max_sequence_length=self.num_text_tokens,
            device=self.device,
        )
        return Condition({"text": embeds, "text_mask": mask})

    def with_first_frame(self, condition: Condition, frame: Tensor, num_frames: int) -> Condition:
        return condition.with_tensors(first_frame=self.encode(frame[:, :, None]))

    def _mu(self, latent_shape: tuple[int, ...]) -> float:
        """The logarithm of the shift: a straight line in the number of latent positions."""
        config = self.scheduler.config
        least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        slope = (high - low) / (most - least)
        return math.prod(latent_shape[1:]) * slope + (low - slope * least)

    def shift_for(self, latent_shape: tuple[int, ...]) -> float:
        return math.exp(self._mu(latent_shape)) if self.scheduler.config.use_dynamic_shifting else self.shift

    def set_timesteps(self, num_steps: int, latent_shape: tuple[int, ...]) -> None:
        sigmas = np.linspace(1.0, 1 / num_steps, num_steps)
        self.scheduler.set_timesteps(sigmas=sigmas, mu=self._mu(latent_shape), device=self.device)

    def forward(
        self, transformer: ModelMixin, x_sigma: Tensor, sigma: Tensor, condition: Condition
    ) -> Tensor:
        dtype, sizes = transformer.dtype, transformer.config
        known = condition.get("first_frame")
        patches = (sizes.patch_size, sizes.patch_size_t)
        num_frames, height, width = (
            x_sigma.shape[2] // sizes.patch_size_t,
            x_sigma.shape[3] // sizes.patch_size,
            x_sigma.shape[4] // sizes.patch_size,
        )
        timestep = sigma.to(self.device, torch.float32) * self.scheduler.config.num_train_timesteps
        if known is not None:
            timestep = timestep[:, None, None].repeat(1, num_frames, height * width)
            timestep[:, 0] = 0
            timestep = timestep.flatten(1)
        x = self.hold_first_frame(x_sigma, known)
        stride, pixels = self.grid.frame_stride, self.grid.pixel_stride
        tokens = transformer(
            hidden_states=self.pipe._pack_latents(x, *patches).to(dtype),
            encoder_hidden_states=condition["text"].to(dtype),
            timestep=timestep,
            encoder_attention_mask=condition["text_mask"],
            num_frames=num_frames,
            height=height,
            width=width,
            rope_interpolation_scale=(stride / self.config.frame_rate, pixels, pixels),
            return_dict=False,
        )[0]
        prediction = self.pipe._unpack_latents(tokens.float(), num_frames, height, width, *patches)
        return self.lead_to_first_frame(prediction, x_sigma, sigma, known)
