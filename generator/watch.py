"""What the literature says to watch while a policy learns from preferences, and when to stop it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from generator.config import LimitsConfig, UpdateConfig
from generator.data import PairData
from generator.draws import Draw, mix, noise_and_levels
from generator.models.base import VideoModel

_MOST_CLIPS = 16  # in memory at a time
_SATURATED = 0.98  # implicit accuracy (DenseDPO, appendix C.4: at 1.0 the outputs no longer change)


class DriftProbe:
    """E‖v_θ − v_base‖² per value on held-out winners, with one noise and level a clip.

    Made before training, while the model still is the campaign's base: its predictions are kept, so that the
    base itself need not be.
    """

    @torch.no_grad()
    def __init__(
        self, model: VideoModel, pairs: PairData | None, rows: Sequence[int], config: UpdateConfig, seed: int
    ) -> None:
        self._seed, self._config = mix(seed, 4), config
        self._pairs, self._rows = pairs, list(rows)[:_MOST_CLIPS]
        self._base = self._predict(model) if self._rows else torch.empty(0)

    @torch.no_grad()
    def measure(self, model: VideoModel) -> float:
        """The drift of `model`. Needs held-out rows."""
        return (self._predict(model) - self._base).pow(2).mean().item()

    def _predict(self, model: VideoModel) -> Tensor:
        assert self._pairs is not None
        x = self._pairs.winners[self._rows]
        draws = [Draw(i, 0) for i in self._rows]
        shape = tuple(x.shape[1:])
        eps, sigma = noise_and_levels(draws, shape, self._config, model.shift_for(shape), self._seed)
        level = model.levels_of(sigma)
        noisy = model.parametrisation.noise(x, eps, level).to(model.device)
        condition = self._pairs.condition(self._rows).to(model.device)
        level, size, found = level.to(model.device), self._config.pairs_per_step, []
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            found.append(model.predict(noisy[part], level[part], condition.rows(part)).float().cpu())
        return torch.cat(found)


def motion_gap(pairs: PairData) -> float:
    """How much more winners move than losers, as a share of the losers' motion; negative: they move less.

    Motion is the mean absolute difference of neighbouring latent frames. Winners that move less teach a
    policy to stand still, whatever they were preferred for.
    """
    if pairs.winners.shape[2] < 2:
        return 0.0
    decided = pairs.signs.any(dim=1).nonzero().flatten().tolist()
    moved = [0.0, 0.0]  # of winners, of losers
    for start in range(0, len(decided), _MOST_CLIPS):
        rows = decided[start : start + _MOST_CLIPS]
        sides = [x[rows].diff(dim=2).abs().mean(dim=(1, 2, 3, 4)) for x in (pairs.winners, pairs.losers)]
        swapped = pairs.signs[rows].sum(dim=1) < 0
        for side in (0, 1):
            moved[side] += torch.where(swapped, sides[1 - side], sides[side]).sum().item()
    return moved[0] / max(moved[1], 1e-12) - 1


def why_stop(limits: LimitsConfig, held: dict[str, float]) -> str | None:
    """The limit that held-out numbers break, in words, or None."""
    for key, value in (("drift", held.get("drift")), ("displacement", held.get("winner_error_change"))):
        most = getattr(limits, key)
        if most is not None and value is not None and value > most:
            return f"{key} {value:.4g} on held-out pairs is above update.limits.{key} {most:g}"
    return None


def is_saturated(recent_accuracies: Sequence[float], margins: Sequence[float]) -> bool:
    """Whether training pairs are all told apart while held-out margins have stopped rising.

    `recent_accuracies` since the last look at held-out pairs, `margins` held out, the newest last.
    """
    if not recent_accuracies or len(margins) < 2:
        return False
    return sum(recent_accuracies) / len(recent_accuracies) > _SATURATED and margins[-1] <= max(margins[:-1])


def new_watch_state() -> dict[str, Any]:
    """What the watch must remember over a resume."""
    return {"accuracies": [], "margins": [], "saturated_at": None, "stopped": None}
