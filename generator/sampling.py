"""Sampling as the pipeline does it, with one seed a clip and a start at any noise level.

Fresh takes start from noise. Guided takes (DenseDPO, section 4.1) start from a real clip corrupted to
σ = η exactly and so share its layout and motion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from generator.condition import Condition
from generator.config import SamplingConfig
from generator.models.base import VideoModel


def noise_for(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """One noise tensor a seed, float32 [B, *shape]; a clip's noise does not depend on its batch."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])


@torch.no_grad()
def sample(
    model: VideoModel,
    condition: Condition,
    noise: Tensor,
    config: SamplingConfig,
    *,
    anchors: Tensor | None = None,
    eta: float | None = None,
    negative: Condition | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """Clean latents, float32 [B, C, T', H', W'].

    `condition` has B rows, `noise` is [B, C, T', H', W']. With `anchors` (normalised latents) and `eta`
    in (0, 1], sampling starts at x_η = (1−η)·anchor + η·noise. `negative` is the condition (one row) of the
    empty prompt, needed when guidance_scale > 1. Raises ValueError for an η outside (0, 1].
    """
    if (anchors is None) != (eta is None):
        raise ValueError("guided sampling needs both an anchor and an eta")
    if eta is not None and not 0 < eta <= 1:
        raise ValueError(f"sample.guided.eta must lie in (0, 1], got {eta}")
    done = []
    for start in range(0, len(noise), config.batch_size):
        rows = slice(start, start + config.batch_size)
        sigmas = _schedule(model, config.num_steps, eta)
        x = noise[rows].to(model.device, torch.float32)
        if anchors is not None:
            level = torch.full((len(x),), float(sigmas[0]), device=x.device)
            x = model.parametrisation.noise(anchors[rows].to(x.device), x, level)
        for t, sigma in zip(model.scheduler.timesteps, sigmas[:-1], strict=True):
            velocity = _predict(model, x, sigma, condition.rows(rows), config.guidance_scale, negative)
            x = model.scheduler.step(velocity, t, x, return_dict=False)[0]
        done.append(x.float().cpu())
        if on_batch is not None:
            on_batch(len(x))
    return torch.cat(done)


def _schedule(model: VideoModel, num_steps: int, eta: float | None) -> list[float]:
    """Sets the scheduler up and returns its noise levels, ending in 0.

    User sigmas would be shifted a second time by `set_timesteps`, so for a start at exactly η the levels
    below η are kept from the ordinary schedule and η is put before them.
    """
    scheduler = model.scheduler
    scheduler.set_timesteps(num_steps, device=model.device)
    if eta is not None:
        below = scheduler.sigmas[scheduler.sigmas < eta]
        sigmas = torch.cat([torch.tensor([eta], dtype=below.dtype, device=below.device), below])
        scheduler.sigmas = sigmas
        scheduler.timesteps = sigmas[:-1] * scheduler.config.num_train_timesteps
        scheduler.num_inference_steps = len(sigmas) - 1
    scheduler.set_begin_index(0)
    return [float(s) for s in scheduler.sigmas]


def _predict(
    model: VideoModel,
    x: Tensor,
    sigma: float,
    condition: Condition,
    guidance: float,
    negative: Condition | None,
) -> Tensor:
    level = torch.full((len(x),), sigma, device=x.device)
    condition = condition.to(x.device)
    if guidance <= 1:
        return model.predict(x, level, condition)
    if negative is None:
        raise ValueError("sampling.guidance_scale > 1 needs the embedding of the empty prompt")
    both = model.predict(
        torch.cat([x, x]),
        torch.cat([level, level]),
        Condition.cat([condition, negative.to(x.device).repeat(len(x))]),
    )
    conditional, unconditional = both.chunk(2)
    return unconditional + guidance * (conditional - unconditional)
