"""How a denoiser's output relates to clean latents and noise: one small class for each convention.

A noise level is a float [B] in the family's own unit: σ in [0, 1] for flow matching, the timestep (from 0 to
N − 1, fractions allowed) for variance-preserving schedules.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Parametrisation(Protocol):
    """Clean latents `x`, noise `eps` and predictions are float [B, C, T', H', W'], levels float [B]."""

    def noise(self, x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        """The noisy latents x_t."""

    def target(self, x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        """What the network should predict."""

    def clean(self, x_level: Tensor, prediction: Tensor, level: Tensor) -> Tensor:
        """x̂0 of a prediction."""

    def leading_to(self, x: Tensor, x_level: Tensor, level: Tensor) -> Tensor:
        """The prediction of which `clean` is x."""

    def x0_weight(self, level: Tensor) -> Tensor:
        """The weight [B] that RealDPO gives the squared error of x̂0: 1/(1 − ᾱ), or 1/σ²."""

    def level_of(self, eta: float) -> float:
        """The level whose signal-to-noise ratio is that of (1 − η)·x + η·ε, for η in (0, 1]."""


class FlowMatching:
    """Rectified flow: x_σ = (1−σ)·x + σ·ε, the network predicts the velocity ε − x."""

    @staticmethod
    def noise(x: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
        s = _wide(sigma, x)
        return (1 - s) * x + s * eps

    @staticmethod
    def target(x: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
        return eps - x

    @staticmethod
    def clean(x_sigma: Tensor, prediction: Tensor, sigma: Tensor) -> Tensor:
        return x_sigma - _wide(sigma, x_sigma) * prediction

    @staticmethod
    def leading_to(x: Tensor, x_sigma: Tensor, sigma: Tensor) -> Tensor:
        return (x_sigma - x) / _wide(sigma, x_sigma).clamp_min(1e-6)

    @staticmethod
    def x0_weight(sigma: Tensor) -> Tensor:
        return sigma.pow(-2)

    @staticmethod
    def level_of(eta: float) -> float:
        return eta


class _VariancePreserving:
    """x_t = √ᾱ·x + √(1−ᾱ)·ε with ᾱ [N] falling over the timesteps.

    Between two timesteps the logarithm of the signal-to-noise ratio is interpolated.
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        alphas = alphas_cumprod.double().clamp(1e-12, 1 - 1e-12)  # zero terminal SNR has no logarithm
        self.log_snr = (alphas / (1 - alphas)).log()
        if not (self.log_snr.diff() < 0).all():
            raise ValueError("alphas_cumprod must fall with the timestep")

    def alpha_bar(self, level: Tensor) -> Tensor:
        """ᾱ [B] at a level."""
        last = len(self.log_snr) - 1
        if (level < 0).any() or (level > last).any():
            raise ValueError(f"timesteps must lie in [0, {last}], got {level.min():g} to {level.max():g}")
        table = self.log_snr.to(level.device)
        low = level.floor().long()
        share = level.double() - low
        return torch.lerp(table[low], table[(low + 1).clamp_max(last)], share).sigmoid()

    def noise(self, x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        signal, noise = self._scales(level, x)
        return signal * x + noise * eps

    def leading_to(self, x: Tensor, x_level: Tensor, level: Tensor) -> Tensor:
        signal, noise = self._scales(level, x_level)
        return self.target(x, (x_level - signal * x) / noise, level)

    def target(self, x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        raise NotImplementedError

    def level_of(self, eta: float) -> float:
        wanted = 2 * torch.tensor(1 / eta - 1, dtype=torch.float64).clamp_min(1e-12).log()
        rising = -self.log_snr
        index = int(torch.searchsorted(rising, -wanted).clamp(1, len(rising) - 1))
        share = (-wanted - rising[index - 1]) / (rising[index] - rising[index - 1])
        return index - 1 + float(share.clamp(0, 1))

    def _scales(self, level: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alpha_bar(level)
        return _wide(alpha.sqrt(), like), _wide((1 - alpha).sqrt(), like)


class VPrediction(_VariancePreserving):
    """The network predicts v = √ᾱ·ε − √(1−ᾱ)·x (CogVideoX)."""

    def target(self, x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        signal, noise = self._scales(level, x)
        return signal * eps - noise * x

    def clean(self, x_level: Tensor, prediction: Tensor, level: Tensor) -> Tensor:
        signal, noise = self._scales(level, x_level)
        return signal * x_level - noise * prediction

    def x0_weight(self, level: Tensor) -> Tensor:
        return 1 / (1 - self.alpha_bar(level))


class EpsilonPrediction(_VariancePreserving):
    """The network predicts the noise."""

    def target(self, x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        return eps

    def clean(self, x_level: Tensor, prediction: Tensor, level: Tensor) -> Tensor:
        signal, noise = self._scales(level, x_level)
        return (x_level - noise * prediction) / signal

    def x0_weight(self, level: Tensor) -> Tensor:
        return 1 / (1 - self.alpha_bar(level))


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """[B] against [B, C, T', H', W']."""
    return values.view(-1, 1, 1, 1, 1).to(like)


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """The resolution shift of flow matching (SD3, section 5.3.2): more time at high noise for shift > 1."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sigma_of(quantile: Tensor, kind: str, shift: float, low: float = 0.0, high: float = 1.0) -> Tensor:
    """The training noise level at a quantile in [0, 1): float32 like `quantile`, within [low, high].

    `logit_normal` is σ = sigmoid(N(0, 1)), `uniform` U(0, 1); both are shifted as the model's own schedule
    is, then mapped into the range, so that every draw is used.
    """
    if kind == "logit_normal":
        raw = torch.sigmoid(torch.special.ndtri(quantile.clamp(1e-6, 1 - 1e-6)))
    elif kind == "uniform":
        raw = quantile
    else:
        raise ValueError(f"unknown timestep distribution {kind!r}; use logit_normal or uniform")
    return low + (high - low) * shift_sigma(raw, shift)
