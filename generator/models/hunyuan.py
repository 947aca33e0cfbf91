"""HunyuanVideo from text: flow matching, a Llama's and a CLIP's view of the prompt, guidance by embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from generator.condition import Condition
from generator.config import GeneratorConfig
from generator.models.base import LatentGrid, VideoModel

if TYPE_CHECKING:
    from diffusers import ModelMixin


class HunyuanModel(VideoModel):
    """See `VideoModel`.

    The released model has guidance distilled into it: it is told a scale (generator.embedded_guidance), in
    training as in sampling. sampling.guidance_scale > 1 guides on top of that, by a second forward.
    """

    pipelines = ("HunyuanVideoPipeline",)
    most_text_tokens = 256

    def __init__(self, pipe: Any, config: GeneratorConfig, device: torch.device) -> None:
        if pipe.transformer.config.image_condition_type is not None:
            raise ValueError(
                f"generator.model {config.model}: HunyuanVideo from an image is not supported; use the "
                "text-to-video checkpoint"
            )
        super().__init__(pipe, config, device)

    @property
    def grid(self) -> LatentGrid:
        vae = self.pipe.vae
        stride, pixels = vae.temporal_compression_ratio, vae.spatial_compression_ratio
        unit = max(16, pixels * self.transformer.config.patch_size)  # 16 is the pipeline's own check
        return LatentGrid(vae.config.latent_channels, stride, pixels, stride, unit)

    def normalise(self, latents: Tensor) -> Tensor:
        return latents * self.pipe.vae.config.scaling_factor

    def denormalise(self, latents: Tensor) -> Tensor:
        return latents / self.pipe.vae.config.scaling_factor

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        text, pooled, mask = self.pipe.encode_prompt(
            prompt=list(prompts), max_sequence_length=self.num_text_tokens, device=self.device
        )
        return Condition({"text": text, "text_mask": mask, "pooled": pooled})

    def set_timesteps(self, num_steps: int, latent_shape: tuple[int, ...]) -> None:
        sigmas = np.linspace(1.0, 0.0, num_steps + 1)[:-1]
        self.scheduler.set_timesteps(sigmas=sigmas, device=self.device)

    def forward(
        self, transformer: ModelMixin, x_sigma: Tensor, sigma: Tensor, condition: Condition
    ) -> Tensor:
        dtype = transformer.dtype
        num_levels = self.scheduler.config.num_train_timesteps
        guidance = None
        if transformer.config.guidance_embeds:
            scale = self.config.embedded_guidance
            guidance = torch.full((len(x_sigma),), scale, dtype=dtype, device=self.device) * 1000.0
        return transformer(
            hidden_states=x_sigma.to(dtype),
            timestep=sigma.to(self.device, torch.float32) * num_levels,
            encoder_hidden_states=condition["text"].to(dtype),
            encoder_attention_mask=condition["text_mask"].to(dtype),
            pooled_projections=condition["pooled"].to(dtype),
            guidance=guidance,
            return_dict=False,
        )[0]
