"""The update: preference optimisation of one round, resumable at its last step checkpoint.

Every draw (batch, noise, noise level) is a pure function of the seed and the step, so a resumed update needs
only weights and optimiser state to continue bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from generator.averages import MovingReference, RunningAverage
from generator.condition import Condition
from generator.config import UpdateConfig
from generator.losses import (
    PairErrors,
    frame_errors,
    kto_loss,
    preference_loss,
    preference_statistics,
)
from generator.models.base import VideoModel


@dataclass(frozen=True)
class PairData:
    """Training pairs in memory.

    winners, losers: normalised latents, float32 [N, C, T', H', W'], both encode(read(stored clip));
    conditions: one row a pair, or fewer that condition_rows points into (pairs of a prompt share its
    embedding); signs int8 [N, T'] (+1 winner better in that latent frame, 0 tie, −1 loser better);
    weights float32 [N]; ids and prompt_ids name the rows in messages and in the held-out split.
    """

    ids: Sequence[str]
    prompt_ids: Sequence[str]
    winners: Tensor
    losers: Tensor
    conditions: Condition
    signs: Tensor
    weights: Tensor
    winner_ids: Sequence[str] = ()  # rows of one winner may share its forward; () = no two rows share one
    condition_rows: Sequence[int] = ()  # the row of `conditions` of each pair; () = its own number

    def __post_init__(self) -> None:
        if len(self.ids) == 0:
            raise ValueError(
                "no preference pairs to train on: lower certainty.min_probability or certainty.min_margin, "
                "or sample more takes"
            )
        if self.winners.shape != self.losers.shape:
            raise ValueError(
                f"winner latents {tuple(self.winners.shape)} and loser latents {tuple(self.losers.shape)} "
                "differ in shape"
            )
        if self.signs.shape != (len(self.ids), self.winners.shape[2]):
            raise ValueError(
                f"signs {tuple(self.signs.shape)} do not match {len(self.ids)} pairs × "
                f"{self.winners.shape[2]} latent frames"
            )
        if not self.signs.any():
            raise ValueError("every pair is a tie in every latent frame: nothing to learn from")

    def condition(self, rows: Sequence[int]) -> Condition:
        """What the network is told of the pairs `rows`."""
        return self.conditions.rows([self.condition_rows[i] for i in rows] if self.condition_rows else rows)

    def groups(self, rows: Sequence[int], size: int) -> list[list[int]]:
        """`rows` in groups of at most `size` of one winner and prompt, in the order of their first rows."""
        if size == 1 or not self.winner_ids:
            return [[i] for i in rows]
        by_winner: dict[tuple[str, str], list[int]] = {}
        for i in rows:
            by_winner.setdefault((self.winner_ids[i], self.prompt_ids[i]), []).append(i)
        return [g[k : k + size] for g in by_winner.values() for k in range(0, len(g), size)]


@dataclass(frozen=True)
class AnchorData:
    """Real clips for the likelihood term: latents [M, C, T', H', W']; conditions as in `PairData`."""

    latents: Tensor
    conditions: Condition
    condition_rows: Sequence[int] = ()

    def condition(self, rows: Sequence[int]) -> Condition:
        return self.conditions.rows([self.condition_rows[i] for i in rows] if self.condition_rows else rows)


def update(
    model: VideoModel,
    pairs: PairData | None,
    anchors: AnchorData | None,
    config: UpdateConfig,
    *,
    parent: Path | None,
    out: Path,
    seed: int,
    on_step: Callable[[dict[str, Any]], None],
) -> dict[str, float]:
    """Trains one round and writes out/checkpoint. Returns the chosen step and its held-out numbers.

    Stops before the optimiser step on a non-finite loss or gradient, naming the batch's ids.
    """
    parameters = model.prepare_training(config.lora, parent, config.reference, _mix(seed, 3))
    optimiser = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99)
    )
    chooses = config.method == "preference" and config.preference_weight > 0
    train_rows, held_rows = _split_by_prompt(pairs, config.held_out_share if chooses else 0.0, seed)
    groups = pairs.groups(train_rows, config.losers_per_winner) if pairs is not None else []
    scratch = out / "_scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    average = RunningAverage(parameters, config.average)
    moving = MovingReference(model, parameters, config) if config.reference == "ema" else None
    state = _resume(scratch, model, optimiser, average, moving)
    log = StepLog(out / "log.jsonl", from_step=state["step"], also=on_step)
    for step in range(state["step"], config.num_steps):
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * _rate(config, step)
        row = _step(model, parameters, optimiser, pairs, groups, anchors, config, seed, step)
        average.update(step)
        if moving is not None:
            moving.update(step)
        log({"step": step, "split": "train", **row})
        last = step == config.num_steps - 1
        if held_rows and (last or step % config.evaluate_every == config.evaluate_every - 1):
            assert pairs is not None
            weights = average.swap()
            held = _held_out(model, pairs, held_rows, config, seed)
            log({"step": step, "split": "held_out", **held})
            # Accuracy, not the loss: at a high β the loss follows a few overconfident pairs and picks an
            # early step. Among steps that so few pairs cannot tell apart the last one is taken: the rate
            # falls, and its noise leaves the weights.
            state["top"] = max(state["top"], held["implicit_accuracy"])
            if near_best(held["implicit_accuracy"], state["top"], len(held_rows)):
                state["best"] = {"step": step, **held}
                _save(scratch / "best.pt", model.trainable_state())
            average.swap(weights)
        state["step"] = step + 1
        if last or step % config.checkpoint_every == config.checkpoint_every - 1:
            trained, moments = model.trainable_state(), optimiser.state_dict()
            saved = {"weights": trained, "optimiser": moments, "average": average.shadow, **state}
            saved["reference"] = moving.shadow if moving is not None else []
            _save(scratch / "state.pt", saved)
    best: dict[str, float] = {"step": config.num_steps - 1}
    average.swap()
    if held_rows and state["best"]:
        best = state["best"]
        model.load_trainable_state(torch.load(scratch / "best.pt", weights_only=True))
    model.eval()
    model.save_checkpoint(out / "checkpoint")
    return {f"chosen_{k}": v for k, v in best.items()}


def _step(
    model: VideoModel,
    parameters: list[torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
    pairs: PairData | None,
    groups: list[list[int]],
    anchors: AnchorData | None,
    config: UpdateConfig,
    seed: int,
    step: int,
) -> dict[str, float]:
    """One optimiser step; returns what is logged."""
    generator = torch.Generator().manual_seed(_mix(seed, step))
    loss = torch.zeros((), device=model.device)
    log: dict[str, float] = {}
    ids: list[str] = []
    if config.needs_pairs:
        assert pairs is not None
        if not groups:
            raise ValueError(
                "no pairs are left for training after the held-out split; lower update.held_out_share"
            )
        drawn = [groups[i] for i in _batch(len(groups), config.pairs_per_step, seed, step)]
        rows = [i for group in drawn for i in group]
        ids = [pairs.ids[i] for i in rows]
        errors = _pair_errors(
            model, pairs, drawn, config, generator, with_reference=config.preference_weight > 0
        )
        signs, weights = pairs.signs[rows].to(model.device), pairs.weights[rows].to(model.device)
        if config.preference_weight > 0:
            preference = _objective(errors, signs, weights, config)
            # a mean over pairs; RealDPO sums over the losers of a winner
            loss = loss + config.preference_weight * preference * (len(rows) / len(drawn))
            log |= {"preference_loss": preference.item(), **preference_statistics(errors, signs)}
        if config.winner_likelihood > 0:
            likelihood = (weights * errors.policy_winner.mean(dim=1)).sum() / weights.sum()
            loss = loss + config.winner_likelihood * likelihood
            log["winner_error"] = likelihood.item()
    real_weight = 1.0 if config.method == "supervised" else config.real_likelihood
    if real_weight > 0:
        if anchors is None:
            raise ValueError(
                "update.real_likelihood or update.method supervised needs anchors in the train part"
            )
        real = _anchor_error(model, anchors, config, generator, seed, step)
        loss = loss + real_weight * real
        log["real_error"] = real.item()
    log["loss"] = loss.item()
    if not math.isfinite(log["loss"]):
        raise FloatingPointError(f"step {step}: the loss is {log['loss']}; pairs {', '.join(ids)}")
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm).item()
    if not math.isfinite(norm):
        raise FloatingPointError(f"step {step}: the gradient norm is {norm}; pairs {', '.join(ids)}")
    optimiser.step()
    log["grad_norm"] = norm
    return log


def _pair_errors(
    model: VideoModel,
    pairs: PairData,
    groups: list[list[int]],
    config: UpdateConfig,
    generator: torch.Generator,
    *,
    with_reference: bool = True,
) -> PairErrors:
    """Errors of a batch, a row a pair: a winner and its losers share noise and t, and all one forward."""
    first = [group[0] for group in groups]
    rows = [i for group in groups for i in group]
    winners = pairs.winners[first].to(model.device)
    losers = pairs.losers[rows].to(model.device)
    eps = torch.randn(winners.shape, generator=generator).to(model.device)
    n = len(first)
    sigma = model.draw_levels(winners, config.timesteps, config.sigma_range, generator)
    condition = pairs.condition(first).to(model.device)
    of_loser = torch.tensor([k for k, group in enumerate(groups) for _ in group], device=model.device)
    everyone = torch.cat([torch.arange(n, device=model.device), of_loser])  # whose noise each clip gets
    x, eps, sigma, condition = (
        torch.cat([winners, losers]),
        eps[everyone],
        sigma[everyone],
        condition.rows(everyone),
    )
    form = model.parametrisation
    x_sigma = form.noise(x, eps, sigma)
    target = form.target(x, eps, sigma)

    def errors(prediction: Tensor) -> Tensor:
        if config.error == "prediction":
            return frame_errors(prediction, target)
        return frame_errors(form.clean(x_sigma, prediction, sigma), x) * form.x0_weight(sigma)[:, None]

    with _autocast(model, config):
        if with_reference:
            reference = errors(model.predict_reference(x_sigma, sigma, condition))
        policy = errors(model.predict(x_sigma, sigma, condition))
    if not with_reference:
        reference = policy.detach()
    return PairErrors(policy[:n][of_loser], policy[n:], reference[:n][of_loser], reference[n:])


def _objective(errors: PairErrors, signs: Tensor, weights: Tensor, config: UpdateConfig) -> Tensor:
    if config.objective == "kto":
        return kto_loss(errors, signs, weights, beta=config.beta, half=config.half)
    return preference_loss(
        errors, signs, weights, beta=config.beta, reduction=config.reduction, half=config.half
    )


def _anchor_error(
    model: VideoModel,
    anchors: AnchorData,
    config: UpdateConfig,
    generator: torch.Generator,
    seed: int,
    step: int,
) -> Tensor:
    rows = _batch(len(anchors.latents), config.anchors_per_step, _mix(seed, 1), step)
    x = anchors.latents[rows].to(model.device)
    eps = torch.randn(x.shape, generator=generator).to(model.device)
    sigma = model.draw_levels(x, config.timesteps, config.sigma_range, generator)
    with _autocast(model, config):
        prediction = model.predict(
            model.parametrisation.noise(x, eps, sigma), sigma, anchors.condition(rows).to(model.device)
        )
    return frame_errors(prediction, model.parametrisation.target(x, eps, sigma)).mean()


@torch.no_grad()
def _held_out(
    model: VideoModel, pairs: PairData, rows: list[int], config: UpdateConfig, seed: int
) -> dict[str, float]:
    """Preference loss and statistics on held-out pairs, with the same noise and levels at every call."""
    parts: list[PairErrors] = []
    for draw in range(4):
        for start in range(0, len(rows), config.pairs_per_step):
            generator = torch.Generator().manual_seed(_mix(seed, 1_000_003 + 1000 * draw + start))
            parts.append(
                _pair_errors(
                    model,
                    pairs,
                    [[i] for i in rows[start : start + config.pairs_per_step]],
                    config,
                    generator,
                )
            )
    errors = PairErrors(*(torch.cat([getattr(p, f) for p in parts]) for f in PairErrors.__dataclass_fields__))
    signs = pairs.signs[rows].to(model.device).repeat(4, 1)
    weights = pairs.weights[rows].to(model.device).repeat(4)
    loss = _objective(errors, signs, weights, config)
    return {"loss": loss.item(), **preference_statistics(errors, signs)}


def near_best(accuracy: float, best: float, num_pairs: int) -> bool:
    """Whether an accuracy on `num_pairs` pairs lies within one standard error of the best one."""
    return accuracy >= best - math.sqrt(best * (1 - best) / num_pairs)


def _split_by_prompt(pairs: PairData | None, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Row numbers for training and for choosing the checkpoint; no prompt is on both sides."""
    if pairs is None:
        return [], []
    prompts = sorted(set(pairs.prompt_ids))
    num_held = round(share * len(prompts)) if len(prompts) > 1 else 0
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(_mix(seed, 2))).tolist()
    held = {prompts[i] for i in order[:num_held]}
    rows = range(len(pairs.ids))
    return [i for i in rows if pairs.prompt_ids[i] not in held], [
        i for i in rows if pairs.prompt_ids[i] in held
    ]


def _rate(config: UpdateConfig, step: int) -> float:
    """Factor of the learning rate: a linear warm-up, then constant or linearly down to 0."""
    decay = 1 - step / config.num_steps if config.schedule == "linear" else 1.0
    return decay * min(1.0, (step + 1) / max(1, config.warmup_steps))


def _batch(num: int, size: int, seed: int, step: int) -> list[int]:
    """What a step draws of `num` things: seeded epochs without replacement, from seed and step alone."""
    picked = []
    for k in range(step * size, (step + 1) * size):
        epoch, place = divmod(k, num)
        order = torch.randperm(num, generator=torch.Generator().manual_seed(_mix(seed, 100 + epoch)))
        picked.append(int(order[place]))
    return picked


def _mix(seed: int, number: int) -> int:
    return (seed * 6_364_136_223_846_793_005 + number * 1_442_695_040_888_963_407 + 1) % (1 << 63)


def _autocast(model: VideoModel, config: UpdateConfig) -> contextlib.AbstractContextManager[Any]:
    if config.dtype == "bfloat16":
        return torch.autocast(model.device.type, torch.bfloat16)
    return contextlib.nullcontext()


def _save(path: Path, state: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def _resume(
    scratch: Path,
    model: VideoModel,
    optimiser: torch.optim.Optimizer,
    average: RunningAverage,
    moving: MovingReference | None,
) -> dict[str, Any]:
    path = scratch / "state.pt"
    if not path.exists():
        return {"step": 0, "top": 0.0, "best": {}}
    saved = torch.load(path, weights_only=True)
    model.load_trainable_state(saved["weights"])
    optimiser.load_state_dict(saved["optimiser"])
    average.shadow = saved["average"]
    if moving is not None:
        moving.shadow = saved["reference"]
        moving.write()
    return {name: saved[name] for name in ("step", "top", "best")}


class StepLog:
    """A JSONL log that a resumed update continues without a row lost or doubled."""

    def __init__(self, path: Path, from_step: int, also: Callable[[dict[str, Any]], None]) -> None:
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if _is_complete(line) and json.loads(line)["step"] < from_step]
        path.write_text("".join(line + "\n" for line in kept))
        self._path, self._also = path, also

    def __call__(self, row: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._also(row)


def _is_complete(line: str) -> bool:
    """A kill may leave half a line at the end."""
    return line.startswith("{") and line.endswith("}")
