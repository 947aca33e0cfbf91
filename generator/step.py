"""One optimiser step: what it draws, the errors of policy and reference, the loss, what is logged."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from generator.config import UpdateConfig
from generator.data import AnchorData, PairData
from generator.draws import Draw, draws_of_step, mix, noise_and_levels
from generator.losses import (
    PairErrors,
    frame_errors,
    kto_baseline,
    kto_loss,
    preference_loss,
    preference_statistics,
    weight_of,
)
from generator.models.base import VideoModel
from generator.ranks import Ranks
from generator.reference_errors import ReferenceErrors
from generator.sharding import clip_gradients

_TRY = (
    "Nothing was updated by it. Look at these clips; lower update.learning_rate or update.beta, or train in "
    "float32: `retake branch` goes on from an earlier round with other settings"
)


@dataclass
class Update:
    """What all steps of an update share."""

    model: VideoModel
    parameters: list[torch.nn.Parameter]
    optimiser: torch.optim.Optimizer
    pairs: PairData | None
    groups: list[list[int]]  # training rows, those of one winner together
    anchors: AnchorData | None
    config: UpdateConfig
    seed: int
    ranks: Ranks
    reference: ReferenceErrors


def take_step(u: Update, step: int) -> dict[str, float]:
    """One optimiser step; returns what is logged. Raises FloatingPointError before it spoils the weights."""
    config: UpdateConfig = u.config
    log: dict[str, float] = {}
    u.optimiser.zero_grad(set_to_none=True)
    u.model.experts_seen.clear()
    total = 0.0
    if config.needs_pairs:
        loss, found = _learn_from_pairs(u, step)
        total, log = total + loss, log | found
    if config.real_weight > 0:
        log["real_error"] = _learn_from_anchors(u, step)
        total += config.real_weight * log["real_error"]
    log["loss"] = total
    u.ranks.sum_gradients(u.parameters)
    _forget_idle_experts(u)
    norm = clip_gradients(u.parameters, config.max_grad_norm)
    if not math.isfinite(norm):
        raise FloatingPointError(f"step {step}: the gradient norm is {norm}; {_ids(u, step)}. {_TRY}")
    u.optimiser.step()
    log["grad_norm"] = norm
    return log


def _learn_from_pairs(u: Update, step: int) -> tuple[float, dict[str, float]]:
    """Adds the gradients of the preference and winner terms; returns their loss and what is logged."""
    config, pairs, device = u.config, u.pairs, u.model.device
    assert pairs is not None
    if not u.groups:
        raise ValueError(
            "no pairs are left for training after the held-out split; lower update.held_out_share"
        )
    drawn = _pair_draws(u, step)
    rows = [i for d in drawn for i in u.groups[d.item]]
    signs, weights = pairs.signs[rows], pairs.weights[rows]
    per_winner = len(rows) / len(drawn)  # a mean over pairs; RealDPO sums over the losers of a winner
    # the whole batch's, however it is cut
    preference_total = weight_of(signs, weights, _reduction(config)).sum().to(device)
    winner_total = weights.sum().to(device)
    parts: list[PairErrors] = []
    num_chunks = u.ranks.num_chunks(len(drawn), config.micro_batches)
    of_ranks = [_chunks(share, num_chunks) for share in u.ranks.shares(drawn)]
    everyone = [i for r in range(u.ranks.num) for d in drawn[r :: u.ranks.num] for i in u.groups[d.item]]
    baseline = _whole_baseline(u, of_ranks, everyone)
    for number, draws in enumerate(of_ranks[u.ranks.rank]):
        errors = _chunk_errors(u, of_ranks, number)
        here = [i for d in draws for i in u.groups[d.item]]
        signs_here, weights_here = pairs.signs[here].to(device), pairs.weights[here].to(device)
        loss = torch.zeros((), device=device)
        if config.preference_weight > 0:
            preference = objective(errors, signs_here, weights_here, config, preference_total, baseline)
            loss = loss + config.preference_weight * per_winner * preference
        if config.winner_likelihood > 0:
            winners = (weights_here * errors.policy_winner.mean(dim=1)).sum() / winner_total
            loss = loss + config.winner_likelihood * winners
        _backward(loss, step, [pairs.ids[i] for i in here])
        parts.append(errors.detach())
    whole = PairErrors.cat(parts).map(u.ranks.gather)
    signs, weights = pairs.signs[everyone].to(device), pairs.weights[everyone].to(device)
    log: dict[str, float] = {}
    total = 0.0
    if config.preference_weight > 0:
        log["preference_loss"] = objective(whole, signs, weights, config).item()
        log |= preference_statistics(whole, signs)
        total += config.preference_weight * per_winner * log["preference_loss"]
    if config.winner_likelihood > 0:
        winners = (weights * whole.policy_winner.mean(dim=1)).sum() / weights.sum()
        log["winner_error"] = winners.item()
        total += config.winner_likelihood * log["winner_error"]
    return total, log


def _chunk_errors(u: Update, of_ranks: list[list[list[Draw]]], number: int) -> PairErrors:
    """Errors of this rank's part number `number` of a step, while the other ranks do theirs."""
    draws = of_ranks[u.ranks.rank][number]
    assert u.pairs is not None
    errors = pair_errors(
        u.model, u.pairs, [u.groups[d.item] for d in draws], draws, u.config, u.seed,
        u.reference if u.config.preference_weight > 0 else None,
        together=[d for chunks in of_ranks for d in chunks[number]],
    )  # fmt: skip
    u.reference.exchange(u.ranks)
    return errors


@torch.no_grad()
def _whole_baseline(u: Update, of_ranks: list[list[list[Draw]]], everyone: list[int]) -> Tensor | None:
    """KTO's Q of a step that is cut into parts, by a forward more; None where no part needs it."""
    num_parts = len(of_ranks[u.ranks.rank])
    if u.config.objective != "kto" or u.config.preference_weight == 0 or num_parts * u.ranks.num == 1:
        return None
    assert u.pairs is not None
    parts = [_chunk_errors(u, of_ranks, number).detach() for number in range(num_parts)]
    whole = PairErrors.cat(parts).map(u.ranks.gather)
    signs, weights = u.pairs.signs[everyone], u.pairs.weights[everyone]
    device = u.model.device
    return kto_baseline(whole, signs.to(device), weights.to(device), beta=u.config.beta, half=u.config.half)


def _learn_from_anchors(u: Update, step: int) -> float:
    """Adds the gradient of the real-likelihood (or supervised) term; returns its mean error."""
    config, anchors = u.config, u.anchors
    if anchors is None:
        raise ValueError("update.real_likelihood or update.method supervised needs anchors in the train part")
    drawn = _anchor_draws(u, step)
    errors = []
    num_chunks = u.ranks.num_chunks(len(drawn), config.micro_batches)
    for draws in _chunks(u.ranks.share(drawn), num_chunks):
        rows = [d.item for d in draws]
        x = anchors.latents[rows].to(u.model.device)
        shape = tuple(x.shape[1:])
        eps, sigma = noise_and_levels(draws, shape, config, u.model.shift_for(shape), _anchor_seed(u))
        eps, level = eps.to(u.model.device), u.model.levels_of(sigma).to(u.model.device)
        form = u.model.parametrisation
        with autocast(u.model, config):
            prediction = u.model.predict(
                form.noise(x, eps, level), level, anchors.condition(rows).to(u.model.device)
            )
        error = frame_errors(prediction, form.target(x, eps, level)).mean(dim=1)
        _backward(config.real_weight * error.sum() / len(drawn), step, [f"anchor row {i}" for i in rows])
        errors.append(error.detach())
    return u.ranks.gather(torch.cat(errors)).mean().item()


def pair_errors(
    model: VideoModel,
    pairs: PairData,
    groups: Sequence[Sequence[int]],
    draws: Sequence[Draw],
    config: UpdateConfig,
    seed: int,
    reference: ReferenceErrors | None,
    num_draws: int | None = None,
    together: Sequence[Draw] | None = None,
) -> PairErrors:
    """Errors of some groups, a row a pair: a winner and its losers share noise and level, and one forward.

    `reference` None leaves the reference out: its errors are then those of the policy. Errors that it knows
    cost no forward; `together` are the draws of all ranks at this time, which skip it together or not at all.
    """
    first, sizes = [group[0] for group in groups], [len(group) for group in groups]
    rows = [i for group in groups for i in group]
    winners, losers = pairs.winners[first].to(model.device), pairs.losers[rows].to(model.device)
    num_draws = config.reference_draws if num_draws is None else num_draws
    shape = tuple(winners.shape[1:])
    noise, sigma = noise_and_levels(draws, shape, config, model.shift_for(shape), seed, num_draws)
    n = len(first)
    of_loser = torch.tensor([k for k, size in enumerate(sizes) for _ in range(size)], device=model.device)
    everyone = torch.cat([torch.arange(n, device=model.device), of_loser])  # whose noise each clip gets
    x = torch.cat([winners, losers])
    eps, level = noise.to(model.device)[everyone], model.levels_of(sigma).to(model.device)[everyone]
    condition = pairs.condition(first).to(model.device).rows(everyone)
    form = model.parametrisation
    x_level, target = form.noise(x, eps, level), form.target(x, eps, level)

    def errors(prediction: Tensor) -> Tensor:
        if config.error == "prediction":
            return frame_errors(prediction, target)
        return frame_errors(form.clean(x_level, prediction, level), x) * form.x0_weight(level)[:, None]

    known = reference is not None and reference.has(draws if together is None else together)
    with autocast(model, config):
        if reference is not None and not known:
            frozen = errors(model.predict_reference(x_level, level, condition))
        policy = errors(model.predict(x_level, level, condition))
    if reference is None:
        frozen = policy.detach()
    elif known:
        return PairErrors(policy[:n][of_loser], policy[n:], *reference.read(draws, model.device))
    else:
        reference.add(draws, sizes, frozen[:n][of_loser], frozen[n:])
    return PairErrors(policy[:n][of_loser], policy[n:], frozen[:n][of_loser], frozen[n:])


def objective(
    errors: PairErrors,
    signs: Tensor,
    weights: Tensor,
    config: UpdateConfig,
    total: Tensor | None = None,
    baseline: Tensor | None = None,
) -> Tensor:
    """The configured preference loss; see `preference_loss` and `kto_loss`."""
    if config.objective == "kto":
        return kto_loss(
            errors, signs, weights, beta=config.beta, half=config.half, total=total, baseline=baseline
        )
    return preference_loss(
        errors, signs, weights, beta=config.beta, reduction=config.reduction, half=config.half, total=total
    )


def _reduction(config: UpdateConfig) -> str:
    return "clip" if config.objective == "kto" else config.reduction


def _pair_draws(u: Update, step: int) -> list[Draw]:
    return draws_of_step(
        len(u.groups), u.config.pairs_per_step, u.seed, step, num_draws=u.config.reference_draws
    )


def _anchor_seed(u: Update) -> int:
    return mix(u.seed, 1)


def _anchor_draws(u: Update, step: int) -> list[Draw]:
    assert u.anchors is not None
    return draws_of_step(u.anchors.latents.shape[0], u.config.anchors_per_step, _anchor_seed(u), step)


def _forget_idle_experts(u: Update) -> None:
    """Drops zero gradients of experts that no rank had a row for: Adam moves by them, and not by none."""
    if u.ranks.num == 1 or len(u.model.experts) == 1:
        return
    seen = set().union(*u.ranks.gather_objects(u.model.experts_seen))
    for number, transformer in enumerate(u.model.transformers):
        if number not in seen:
            for p in transformer.parameters():
                p.grad = None


def _ids(u: Update, step: int) -> str:
    """What the step's batch was: pairs by id, anchors by row."""
    named: list[str] = []
    if u.config.needs_pairs and u.pairs is not None:
        ids = [u.pairs.ids[i] for d in _pair_draws(u, step) for i in u.groups[d.item]]
        named.append(f"pairs {', '.join(ids)}")
    if u.config.real_weight > 0 and u.anchors is not None:
        named.append(f"anchor rows {', '.join(str(d.item) for d in _anchor_draws(u, step))}")
    return "; ".join(named)


def _backward(loss: Tensor, step: int, ids: Sequence[str]) -> None:
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(f"step {step}: the loss is {value}; of {', '.join(ids)}. {_TRY}")
    loss.backward()


def _chunks(draws: list[Draw], num: int) -> list[list[Draw]]:
    """At most `num` parts of nearly equal length, none empty."""
    num = min(num, len(draws))
    bounds = [len(draws) * k // num for k in range(num + 1)] if num else [0]
    return [draws[a:b] for a, b in itertools.pairwise(bounds)]


def autocast(model: VideoModel, config: UpdateConfig) -> contextlib.AbstractContextManager[Any]:
    if config.dtype == "bfloat16":
        return torch.autocast(model.device.type, torch.bfloat16)
    return contextlib.nullcontext()
