"""Averages of weights over the steps of an update: one to compare and keep, one as a moving reference."""

from __future__ import annotations

import torch
from torch import Tensor

from generator.config import UpdateConfig
from generator.models.base import VideoModel


class RunningAverage:
    """A running average of the trained weights in float32 (in bfloat16 a slow one would round to no change).

    A checkpoint from the middle of an update carries the noise of a rate that is still high; its average does
    not, so that steps can be compared fairly. With decay 0 the average is the weights themselves.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.shadow = [p.detach().float().clone() for p in parameters] if decay else []

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))  # the start is forgotten faster, as usual
        for shadow, parameter in zip(self.shadow, self.parameters, strict=False):
            shadow.lerp_(parameter.detach().float(), 1 - decay)

    @torch.no_grad()
    def swap(self, weights: list[Tensor] | None = None) -> list[Tensor]:
        """Puts the average (or `weights`) into the model and returns what was there."""
        if not self.decay:
            return []
        before = [p.detach().clone() for p in self.parameters]
        for parameter, value in zip(self.parameters, weights or self.shadow, strict=True):
            parameter.copy_(value)
        return before


class MovingReference:
    """RealDPO's reference: an exponential moving average of the policy.

    Kept in float32 beside the reference itself: in bfloat16 a step of 1 − 0.999 rounds to nothing.
    """

    def __init__(self, model: VideoModel, parameters: list[torch.nn.Parameter], config: UpdateConfig) -> None:
        self.parameters, self.reference = parameters, model.reference_parameters()
        self.decay, self.every = config.ema_decay, config.ema_every
        self.shadow = [p.detach().float().clone() for p in self.reference]

    @torch.no_grad()
    def update(self, step: int) -> None:
        if step % self.every != self.every - 1:
            return
        for shadow, parameter in zip(self.shadow, self.parameters, strict=True):
            shadow.lerp_(parameter.detach().float(), 1 - self.decay)
        self.write()

    @torch.no_grad()
    def write(self) -> None:
        """Puts the average into the reference."""
        for reference, shadow in zip(self.reference, self.shadow, strict=True):
            reference.copy_(shadow)
