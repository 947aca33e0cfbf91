"""Wan 2.1 and 2.2, from text or from a first frame: flow matching over a causal 3-D autoencoder.

Three ways to give the first frame: beside the noise with a mask (2.1, 2.2 A14B), with CLIP's view of it
(2.1), or in the place of the first noisy frame with timesteps of 0 there (2.2 5B).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from generator.condition import Condition
from generator.config import GeneratorConfig
from generator.models.base import LatentGrid, VideoModel

if TYPE_CHECKING:
    from diffusers import ModelMixin


class WanModel(VideoModel):
    """See `VideoModel`. With a boundary_ratio, `transformer` predicts above it and `transformer_2` below."""

    pipelines = ("WanPipeline", "WanImageToVideoPipeline")

    def __init__(self, pipe: Any, config: GeneratorConfig, device: torch.device) -> None:
        if pipe.transformer is None or (pipe.config.boundary_ratio is None) != (pipe.transformer_2 is None):
            raise ValueError(
                f"generator.model {config.model}: a Wan checkpoint has a transformer, or with a "
                "boundary_ratio a transformer and a transformer_2; this one has not"
            )
        super().__init__(pipe, config, device)
        if pipe.transformer.config.image_dim is not None and self.num_text_tokens != self.most_text_tokens:
            raise ValueError(
                f"generator.max_text_tokens {config.max_text_tokens}: Wan 2.1 from a first frame takes "
                f"{self.most_text_tokens}, by which it tells the words from the image; leave the key out"
            )
        self.replaces_first_frame = bool(pipe.config.expand_timesteps)
        self.needs_first_frame = pipe.transformer.config.in_channels != pipe.vae.config.z_dim

    @property
    def experts(self) -> tuple[str, ...]:
        return ("transformer",) if self.pipe.transformer_2 is None else ("transformer", "transformer_2")

    def expert_of(self, sigma: Tensor) -> Tensor:
        # both sides as timesteps, as the pipeline compares them: the last bit decides at the boundary
        num_levels = self.scheduler.config.num_train_timesteps
        return (sigma.float() * num_levels < self.pipe.config.boundary_ratio * num_levels).long()

    @property
    def grid(self) -> LatentGrid:
        vae, patch = self.pipe.vae.config, self.transformer.config.patch_size
        stride, pixels = vae.scale_factor_temporal, vae.scale_factor_spatial
        return LatentGrid(vae.z_dim, stride, pixels, stride, max(16, pixels * patch[1]))

    def _statistics(self) -> tuple[Tensor, Tensor]:
        vae = self.pipe.vae.config
        shape = (1, vae.z_dim, 1, 1, 1)
        mean = torch.tensor(vae.latents_mean, device=self.device).view(shape)
        std = torch.tensor(vae.latents_std, device=self.device).view(shape)
        return mean, std

    def normalise(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics()
        return (latents - mean) / std

    def denormalise(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics()
        # Dividing by the reciprocal is what the pipeline does; the last bit must agree with it.
        return latents / (1.0 / std) + mean

    @torch.no_grad()
    def with_first_frame(self, condition: Condition, frame: Tensor, num_frames: int) -> Condition:
        if self.replaces_first_frame:
            return condition.with_tensors(first_frame=self.encode(frame[:, :, None]))
        if not self.needs_first_frame:
            return super().with_first_frame(condition, frame, num_frames)
        clip = torch.zeros(*frame.shape[:2], num_frames, *frame.shape[2:])
        clip[:, :, 0] = frame
        latents = self.encode(clip)
        given = torch.zeros_like(latents[:, :1]).repeat(1, self.grid.frame_stride, 1, 1, 1)
        given[:, :, 0] = 1
        condition = condition.with_tensors(first_frame=torch.cat([given, latents], dim=1))
        if self.transformer.config.image_dim is None:
            return condition
        pixels = ((frame + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
        return condition.with_tensors(image=self.pipe.encode_image(list(pixels), self.device))

    def forward(
        self, transformer: ModelMixin, x_sigma: Tensor, sigma: Tensor, condition: Condition
    ) -> Tensor:
        dtype = transformer.dtype
        timestep = sigma.to(self.device, torch.float32) * self.scheduler.config.num_train_timesteps
        known, x = None, x_sigma
        if self.replaces_first_frame:
            known = condition.get("first_frame")
            x = self.hold_first_frame(x, known)
            timestep = self._timestep_of_tokens(timestep, x, known is not None)
        elif self.needs_first_frame:
            x = torch.cat([x, self.first_frame_of(condition).to(x)], dim=1)
        image = condition.get("image")
        prediction = transformer(
            hidden_states=x.to(dtype),
            timestep=timestep,
            encoder_hidden_states=condition["text"].to(dtype),
            encoder_hidden_states_image=None if image is None else image.to(dtype),
            return_dict=False,
        )[0]
        return self.lead_to_first_frame(prediction, x_sigma, sigma, known)

    def _timestep_of_tokens(self, timestep: Tensor, x: Tensor, first_is_known: bool) -> Tensor:
        """[B] → [B, tokens]: 0 in a first frame that is given."""
        _, height, width = self.transformer.config.patch_size
        tokens = timestep[:, None, None].repeat(1, x.shape[2], (x.shape[3] // height) * (x.shape[4] // width))
        if first_is_known:
            tokens[:, 0] = 0
        return tokens.flatten(1)
