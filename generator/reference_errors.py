"""The reference's errors, computed once for a fixed set of draws and reused in every later epoch.

The reference does not move within an update, so its error on one pair with one noise and level is a constant:
a number for each clip and latent frame. With D draws a pair and more than D epochs its forward is saved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from generator.draws import Draw
from generator.ranks import Ranks


class ReferenceErrors:
    """Errors of the frozen reference by draw, float32 [n, T'] each: a winner's and its n losers'.

    `weights` names the reference, so that errors of another one are never taken from a saved state.
    """

    def __init__(self, num_draws: int, reference: Sequence[Tensor]) -> None:
        self.num_draws = num_draws
        self.weights = _hash(reference) if num_draws else ""
        self.known: dict[tuple[int, int], Tensor] = {}
        self._new: dict[tuple[int, int], Tensor] = {}

    def has(self, draws: Sequence[Draw]) -> bool:
        """Whether all of these draws are known; never without a fixed set of draws."""
        return self.num_draws > 0 and all((d.item, d.number) in self.known for d in draws)

    def read(self, draws: Sequence[Draw], device: torch.device) -> tuple[Tensor, Tensor]:
        """(winner's errors [Σn, T'], losers' errors [Σn, T']) of the draws' groups."""
        both = torch.cat([self.known[d.item, d.number] for d in draws], dim=1).to(device)
        return both[0], both[1]

    def add(self, draws: Sequence[Draw], sizes: Sequence[int], winner: Tensor, loser: Tensor) -> None:
        """Remembers errors of groups of `sizes` pairs, if draws come again at all."""
        if self.num_draws == 0:
            return
        both = torch.stack([winner, loser]).detach().float().cpu()
        for draw, part in zip(draws, both.split(list(sizes), dim=1), strict=True):
            self.known[draw.item, draw.number] = self._new[draw.item, draw.number] = part.clone()

    def exchange(self, ranks: Ranks) -> None:
        """Lets every rank know what the others have found since the last time.

        Only so do all ranks skip the same forwards. All must call it after the same additions.
        """
        if self._new and ranks.num > 1:
            for found in ranks.gather_objects(self._new):
                self.known |= found
        self._new = {}

    def state(self) -> dict[str, Any]:
        return {"weights": self.weights, "known": self.known}

    def load(self, state: dict[str, Any]) -> None:
        assert state["weights"] == self.weights, "reference errors of other weights"
        self.known = state["known"]


def _hash(tensors: Sequence[Tensor]) -> str:
    digest = hashlib.sha256()
    for t in tensors:
        digest.update(t.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
