"""The update: preference optimisation of one round, resumable at its last step checkpoint.

Every draw (batch, noise, noise level) is a pure function of the seed and the step, so a resumed update needs
only weights and optimiser state to continue bit for bit.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from generator.averages import MovingReference, RunningAverage
from generator.config import UpdateConfig
from generator.data import AnchorData, PairData
from generator.draws import Draw, mix
from generator.losses import PairErrors, preference_statistics
from generator.models.base import VideoModel
from generator.ranks import Ranks
from generator.reference_errors import ReferenceErrors
from generator.sharding import Sharding, load_optimiser, part_like, reshard, whole
from generator.step import Update, objective, pair_errors, take_step
from generator.watch import DriftProbe, is_saturated, motion_gap, new_watch_state, why_stop

_HELD_OUT_DRAWS = 4


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
    warn: Callable[[str], None] = lambda message: None,
    sharding: Sharding | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Trains one round and writes out/checkpoint. `model` must still have the campaign's base weights.

    Returns the chosen step with its held-out numbers, how much winners move, and why it stopped early or what
    was warned of. Stops before the optimiser step on a non-finite loss or gradient, naming the batch's ids.
    Under torchrun every rank calls this with the same arguments, and the first one writes; `out` must be a
    folder that all ranks read. With `sharding` the ranks also share the weights (FSDP2).
    When `stopping` says so, on all ranks at the same step, the step that has just been made is saved and
    InterruptedError is raised: the same call goes on from it.
    """
    if sharding is not None:
        sharding.check(config)
    learns_from_pairs = config.method == "preference" and config.preference_weight > 0
    share = config.held_out_share if learns_from_pairs else 0.0
    train_rows, held_rows = pairs.split_by_prompt(share, seed) if pairs is not None else ([], [])
    drift = DriftProbe(model, pairs, held_rows, config, seed)
    parameters, reference = _set_up(model, config, parent, seed, sharding, learns_from_pairs)
    optimiser = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99)
    )
    groups = pairs.groups(train_rows, config.losers_per_winner) if pairs is not None else []
    ranks = Ranks()
    ranks.check_shares(config)
    u = Update(model, parameters, optimiser, pairs, groups, anchors, config, seed, ranks, reference)
    run = _Run(u, held_rows, drift, out / "_scratch", warn)
    if pairs is not None and learns_from_pairs:
        run.look_at_motion(motion_gap(pairs))
    log = StepLog(out / "log.jsonl", from_step=run.state["step"], also=on_step, writes=ranks.rank == 0)
    for step in range(run.state["step"], config.num_steps):
        if run.state["stopped"]:
            break
        log({"step": step, "split": "train", **run.step(step)})
        last = step == config.num_steps - 1
        if held_rows and (last or step % config.evaluate_every == config.evaluate_every - 1):
            log({"step": step, "split": "held_out", **run.look_at_held_out(step)})
        run.state["step"] = step + 1
        leaving = stopping()
        due = step % config.checkpoint_every == config.checkpoint_every - 1
        if last or run.state["stopped"] or due or leaving:
            run.save()
        if leaving:
            raise InterruptedError(f"stopped after step {step}, which is saved")
    return run.finish(out / "checkpoint")


def _set_up(
    model: VideoModel,
    config: UpdateConfig,
    parent: Path | None,
    seed: int,
    sharding: Sharding | None,
    learns_from_pairs: bool,
) -> tuple[list[torch.nn.Parameter], ReferenceErrors]:
    """Policy and reference as the config wants them: what is trained, and errors of the reference."""
    if sharding is not None:
        model.leave_device()
    parameters = model.prepare_training(config.lora, parent, config.reference, mix(seed, 3))
    if config.activation_checkpointing:
        for transformer in model.transformers:
            transformer.enable_gradient_checkpointing()
    if config.compile:
        for transformer in model.transformers:
            transformer.compile()
    # before the weights are split: their hash must not depend on the number of ranks
    reference = ReferenceErrors(config.reference_draws, model.reference_state() if learns_from_pairs else [])
    if sharding is not None:
        parameters = model.shard(sharding)
    return parameters, reference


@torch.no_grad()
def _held_out(u: Update, rows: list[int]) -> dict[str, float]:
    """Preference loss and statistics on held-out pairs, with the same noise and levels at every call."""
    parts: list[PairErrors] = []
    assert u.pairs is not None
    for number in range(_HELD_OUT_DRAWS):
        for start in range(0, len(rows), u.config.pairs_per_step):
            here = rows[start : start + u.config.pairs_per_step]
            parts.append(
                pair_errors(
                    u.model, u.pairs, [[i] for i in here], [Draw(i, number) for i in here], u.config,
                    mix(u.seed, 5), ReferenceErrors(0, ()), _HELD_OUT_DRAWS,
                )
            )  # fmt: skip
    errors = PairErrors.cat(parts)
    signs = u.pairs.signs[rows].to(u.model.device).repeat(_HELD_OUT_DRAWS, 1)
    weights = u.pairs.weights[rows].to(u.model.device).repeat(_HELD_OUT_DRAWS)
    loss = objective(errors, signs, weights, u.config)
    return {"loss": loss.item(), **preference_statistics(errors, signs)}


def near_best(accuracy: float, best: float, num_pairs: int) -> bool:
    """Whether an accuracy on `num_pairs` pairs lies within one standard error of the best one."""
    return accuracy >= best - math.sqrt(best * (1 - best) / num_pairs)


def _rate(config: UpdateConfig, step: int) -> float:
    """Factor of the learning rate: a linear warm-up, then constant or linearly down to 0."""
    decay = 1 - step / config.num_steps if config.schedule == "linear" else 1.0
    return decay * min(1.0, (step + 1) / max(1, config.warmup_steps))


class _Run:
    """An update between its first and last step: progress, averages, held-out looks, step checkpoints.

    `state` is what a resumed update must know beside weights and optimiser, as plain data.
    """

    def __init__(
        self, u: Update, held_rows: list[int], drift: DriftProbe, folder: Path, warn: Callable[[str], None]
    ) -> None:
        self.u, self.held_rows, self.drift, self.folder, self.warn = u, held_rows, drift, folder, warn
        self.average = RunningAverage(u.parameters, u.config.average)
        ema = u.config.reference == "ema"
        self.moving = MovingReference(u.model, u.parameters, u.config) if ema else None
        self.result: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)
        limits = u.config.limits
        if not held_rows and (limits.drift or limits.displacement):
            warn("update.limits.drift and displacement need held-out pairs: raise update.held_out_share")
        elif not held_rows and u.pairs is not None and u.config.held_out_share > 0:
            warn(
                f"update.held_out_share {u.config.held_out_share:g} of {len(set(u.pairs.prompt_ids))} "
                "prompts is none: the last step is the checkpoint; raise it to have one chosen on held-out "
                "pairs"
            )
        self.state = self._resume()

    def step(self, step: int) -> dict[str, float]:
        """One optimiser step; returns what is logged."""
        for group in self.u.optimiser.param_groups:
            group["lr"] = self.u.config.learning_rate * _rate(self.u.config, step)
        row = take_step(self.u, step)
        self.average.update(step)
        if self.moving is not None:
            self.moving.update(step)
        self.state["accuracies"].append(row.get("implicit_accuracy", 0.0))
        return row

    def look_at_motion(self, gap: float) -> None:
        """Refuses pairs whose winners move too little."""
        self.result["motion_gap"] = gap
        most = self.u.config.limits.motion_gap
        if most is not None and gap < -most:
            self.state["stopped"] = (
                f"winners move {-gap:.0%} less than losers, more than "
                f"update.limits.motion_gap {most:g} allows"
            )

    def look_at_held_out(self, step: int) -> dict[str, float]:
        """Measures the averaged weights on held-out pairs; keeps them if none before were clearly better."""
        state = self.state
        weights = self.average.swap()
        held = _held_out(self.u, self.held_rows) | {"drift": self.drift.measure(self.u.model)}
        self._watch(held, step)
        # Accuracy, not the loss: at a high β the loss follows a few overconfident pairs and picks an early
        # step. Among steps that so few pairs cannot tell apart the last one is taken: the rate falls, and
        # its noise leaves the weights.
        if not state["stopped"]:
            state["top"] = max(state["top"], held["implicit_accuracy"])
            if near_best(held["implicit_accuracy"], state["top"], len(self.held_rows)):
                state["best"] = {"step": step, **held}
                self._save_best()
        reshard(self.u.model.transformers)
        self.average.swap(weights)
        return held

    def _watch(self, held: dict[str, float], step: int) -> None:
        """Notes whether the update must stop, and warns once of saturation."""
        state = self.state
        state["margins"].append(held["margin"])
        if state["saturated_at"] is None and is_saturated(state["accuracies"], state["margins"]):
            state["saturated_at"] = step
            self.warn(
                f"step {step}: implicit accuracy on training pairs is above 0.98 while held-out margins no "
                "longer rise: the policy tells these pairs apart by something that does not carry over. "
                "Sample harder or more pairs, or lower update.num_steps"
            )
        state["accuracies"] = []
        state["stopped"] = why_stop(self.u.config.limits, held)
        if state["stopped"]:
            self.warn(f"step {step}: the update stops, since {state['stopped']}")

    def finish(self, checkpoint: Path) -> dict[str, Any]:
        """Writes the checkpoint of the chosen step; returns what `update` does."""
        best: dict[str, Any] = {"step": self.u.config.num_steps - 1}
        self.average.swap()
        if self.state["best"]:
            best = self.state["best"]
            self._load_best()
        model, ranks = self.u.model, self.u.ranks
        model.eval()
        reshard(model.transformers)
        model.save_checkpoint(checkpoint, writes=ranks.rank == 0)
        ranks.wait()
        ended = {k: self.state[k] for k in ("stopped", "saturated_at") if self.state[k] is not None}
        return {f"chosen_{k}": v for k, v in best.items()} | self.result | ended

    def _resume(self) -> dict[str, Any]:
        """Loads the last step checkpoint; returns the progress, that of a start if there is none."""
        path = self.folder / "state.pt"
        if not path.exists():
            state = {"step": 0, "top": 0.0, "best": {}, **new_watch_state()}
            if self.u.config.limits.any:
                # an update that breaks its limits at the first look gives back what it was given
                state["best"] = {"step": -1}
                self._save_best()
            return state
        saved = torch.load(path, weights_only=True, map_location="cpu")
        self.u.model.load_trainable_state(saved["weights"])
        load_optimiser(self.u.optimiser, saved["optimiser"])
        self.u.reference.load(saved["reference_errors"])
        _copy(saved["average"], self.average.shadow)
        if self.moving is not None:
            _copy(saved["reference"], self.moving.shadow)
            self.moving.write()
        return saved["progress"]

    def save(self) -> None:
        """Writes a step checkpoint."""
        self._write(
            "state.pt",
            {
                "weights": self.u.model.trainable_state(),
                "optimiser": whole(self.u.optimiser.state_dict()),
                "average": whole(self.average.shadow),
                "reference": whole(self.moving.shadow) if self.moving is not None else [],
                "reference_errors": self.u.reference.state(),
                "progress": self.state,
            },
        )

    def _save_best(self) -> None:
        self._write("best.pt", self.u.model.trainable_state())

    def _load_best(self) -> None:
        best = torch.load(self.folder / "best.pt", weights_only=True, map_location="cpu")
        self.u.model.load_trainable_state(best)

    def _write(self, name: str, content: dict[str, Any]) -> None:
        if self.u.ranks.rank == 0:
            temporary = self.folder / f"{name}.tmp"
            torch.save(content, temporary)
            os.replace(temporary, self.folder / name)
        self.u.ranks.wait()


def _copy(whole_tensors: list[Tensor], into: list[Tensor]) -> None:
    for value, mine in zip(whole_tensors, into, strict=True):
        mine.copy_(part_like(value, mine))


class StepLog:
    """A JSONL log that a resumed update continues without a row lost or doubled."""

    def __init__(
        self, path: Path, from_step: int, also: Callable[[dict[str, Any]], None], writes: bool = True
    ) -> None:
        self._path, self._also, self._writes = path, also, writes
        if writes:
            lines = path.read_text().splitlines() if path.exists() else []
            kept = [line for line in lines if _is_complete(line) and json.loads(line)["step"] < from_step]
            path.write_text("".join(line + "\n" for line in kept))

    def __call__(self, row: dict[str, Any]) -> None:
        if self._writes:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        self._also(row)


def _is_complete(line: str) -> bool:
    """A kill may leave half a line at the end."""
    return line.startswith("{") and line.endswith("}")
