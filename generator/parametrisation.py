"""How a denoiser's output relates to clean latents and noise: one small class for each convention."""

from __future__ import annotations

import torch
from torch import Tensor


class FlowMatching:
    """Rectified flow: x_σ = (1−σ)·x + σ·ε, the network predicts the velocity ε − x.

    Clean latents `x` and noise `eps` are float [B, C, T', H', W'], `sigma` is float [B] in [0, 1].
    """

    @staticmethod
    def noise(x: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.view(-1, 1, 1, 1, 1).to(x.dtype)
        return (1 - s) * x + s * eps

    @staticmethod
    def target(x: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
        return eps - x

    @staticmethod
    def clean(x_sigma: Tensor, prediction: Tensor, sigma: Tensor) -> Tensor:
        """x̂0 of a prediction."""
        return x_sigma - sigma.view(-1, 1, 1, 1, 1).to(x_sigma.dtype) * prediction


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """The resolution shift of flow matching (SD3, section 5.3.2): more time at high noise for shift > 1."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def draw_sigma(
    num: int, kind: str, shift: float, low: float, high: float, generator: torch.Generator
) -> Tensor:
    """Noise levels for training, float32 [num] within [low, high].

    `logit_normal` draws σ = sigmoid(N(0, 1)), `uniform` draws U(0, 1); both are shifted as the model's own
    schedule is, then mapped into the range by their quantile, so that every draw is used.
    """
    if kind == "logit_normal":
        raw = torch.sigmoid(torch.randn(num, generator=generator))
    elif kind == "uniform":
        raw = torch.rand(num, generator=generator)
    else:
        raise ValueError(f"unknown timestep distribution {kind!r}; use logit_normal or uniform")
    return low + (high - low) * shift_sigma(raw, shift)
