"""Every random choice of an update, as a pure function of the seed and of what it is for.

Whoever asks again gets the same: a resumed update, one with other micro-batches or ranks, and one whose
reference errors were computed an epoch ago all see the noise and levels of the plain one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from generator.config import UpdateConfig
from generator.parametrisation import sigma_of


@dataclass(frozen=True)
class Draw:
    """What a step takes: a thing's number, and which of its draws of noise and level this is."""

    item: int
    number: int


def mix(seed: int, *numbers: int) -> int:
    """A seed for one purpose, from the update's."""
    for number in numbers:
        seed = (seed * 6_364_136_223_846_793_005 + number * 1_442_695_040_888_963_407 + 1) % (1 << 63)
    return seed


def draws_of_step(num: int, size: int, seed: int, step: int, num_draws: int = 0) -> list[Draw]:
    """What a step takes of `num` things: seeded epochs without replacement, from seed and step alone.

    A thing has a new draw in every epoch or, with `num_draws` > 0, so many that it goes through again.
    """
    found: list[Draw] = []
    while len(found) < size:
        epoch, place = divmod(step * size + len(found), num)
        order = torch.randperm(num, generator=torch.Generator().manual_seed(mix(seed, 100 + epoch))).tolist()
        number = epoch % num_draws if num_draws else epoch
        found += [Draw(item, number) for item in order[place : place + size - len(found)]]
    return found


def noise_and_levels(
    draws: Sequence[Draw],
    shape: tuple[int, ...],
    config: UpdateConfig,
    shift: float,
    seed: int,
    num_draws: int = 0,
) -> tuple[Tensor, Tensor]:
    """ε, float32 [B, *shape], and σ, float32 [B], of some draws on the CPU.

    With `num_draws` > 0 the levels of a thing are stratified: each draw has its own part of the quantiles, so
    that few draws cover the whole range.
    """
    noise, quantiles = [], []
    for draw in draws:
        generator = torch.Generator().manual_seed(mix(seed, draw.item, draw.number))
        noise.append(torch.randn(shape, generator=generator))
        quantile = torch.rand((), generator=generator)
        if num_draws:
            order = torch.randperm(num_draws, generator=torch.Generator().manual_seed(mix(seed, draw.item)))
            quantile = (order[draw.number] + quantile) / num_draws
        quantiles.append(quantile)
    sigma = sigma_of(torch.stack(quantiles), config.timesteps, shift, *config.sigma_range)
    return torch.stack(noise), sigma
