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
    seeds: Sequence[int] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """Clean latents, float32 [B, C, T', H', W'].

    `condition` has B rows, `noise` is [B, C, T', H', W']. With `anchors` (normalised latents) and `eta`
    in (0, 1], sampling starts at x_η = (1−η)·anchor + η·noise, or where the schedule has the signal-to-noise
    ratio of that. `negative` is the condition (one row) of the empty prompt, needed when guidance_scale > 1;
    `seeds` are those of `noise`, needed by solvers that draw more noise on the way. Raises ValueError for an
    η outside (0, 1].
    """
    if (anchors is None) != (eta is None):
        raise ValueError("guided sampling needs both an anchor and an eta")
    if eta is not None and not 0 < eta <= 1:
        raise ValueError(f"sample.guided.eta must lie in (0, 1], got {eta}")
    done = []
    for start in range(0, len(noise), config.batch_size):
        rows = slice(start, start + config.batch_size)
        levels = model.schedule(config.num_steps, tuple(noise.shape[1:]), eta)
        x = noise[rows].to(model.device, torch.float32)
        if anchors is not None and eta is not None:
            level = torch.full((len(x),), model.parametrisation.level_of(eta), device=x.device)
            x = model.parametrisation.noise(anchors[rows].to(x.device), x, level)
        more_noise = _after(noise[rows], seeds[rows] if seeds else None) if model.is_stochastic else None
        for t, told in zip(model.scheduler.timesteps, levels, strict=True):
            prediction = _predict(model, x, told, condition.rows(rows), config.guidance_scale, negative)
            x = model.step(prediction, t, x, more_noise)
        done.append(x.float().cpu())
        if on_batch is not None:
            on_batch(len(x))
    return torch.cat(done)


def _after(noise: Tensor, seeds: Sequence[int] | None) -> list[torch.Generator]:
    """The clips' generators as `noise_for` leaves them: afresh they would draw the same noise once more."""
    if seeds is None:
        raise ValueError("the scheduler of generator.model draws noise at every step: sampling needs seeds")
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    for generator in generators:
        torch.randn(noise.shape[1:], generator=generator)
    return generators


def _predict(
    model: VideoModel,
    x: Tensor,
    level: float,
    condition: Condition,
    guidance: float,
    negative: Condition | None,
) -> Tensor:
    levels = torch.full((len(x),), level, device=x.device)
    condition = condition.to(x.device)
    if guidance <= 1:
        return model.predict(x, levels, condition)
    if negative is None:
        raise ValueError("sampling.guidance_scale > 1 needs the embedding of the empty prompt")
    # all but the prompt, such as a first frame, is the same on both sides
    without = condition.with_tensors(**negative.to(x.device).repeat(len(x)).tensors)
    both = model.predict(torch.cat([x, x]), torch.cat([levels, levels]), Condition.cat([condition, without]))
    conditional, unconditional = both.chunk(2)
    return unconditional + guidance * (conditional - unconditional)
