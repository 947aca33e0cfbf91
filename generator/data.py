"""What an update trains on: preference pairs and real clips, as latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from generator.condition import Condition
from generator.draws import mix
from generator.latents import Latents


@dataclass(frozen=True)
class PairData:
    """Training pairs.

    winners, losers: normalised latents, float32 [N, C, T', H', W'], both encode(read(stored clip)), in memory
    or in files (generator/latents.py);
    conditions: one row a pair, or fewer that condition_rows points into (pairs of a prompt share its
    embedding); signs int8 [N, T'] (+1 winner better in that latent frame, 0 tie, −1 loser better);
    weights float32 [N]; ids and prompt_ids name the rows in messages and in the held-out split.
    """

    ids: Sequence[str]
    prompt_ids: Sequence[str]
    winners: Latents
    losers: Latents
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
        if tuple(self.winners.shape) != tuple(self.losers.shape):
            raise ValueError(
                f"winner latents {tuple(self.winners.shape)} and loser latents {tuple(self.losers.shape)} "
                f"differ in shape (pairs {_some(self.ids)}); all clips of an update have one length and "
                "size, so encode them at data.clip's"
            )
        if self.signs.shape != (len(self.ids), self.winners.shape[2]):
            raise ValueError(
                f"signs {tuple(self.signs.shape)} do not match {len(self.ids)} pairs × "
                f"{self.winners.shape[2]} latent frames; give every pair a sign for each latent frame"
            )
        if not self.signs.any():
            raise ValueError(
                f"every pair is a tie in every latent frame (pairs {_some(self.ids)}): nothing to learn "
                "from; leave ties out, or sample takes that differ more"
            )

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

    def split_by_prompt(self, share: float, seed: int) -> tuple[list[int], list[int]]:
        """Row numbers for training and for choosing the checkpoint; no prompt is on both sides."""
        prompts = sorted(set(self.prompt_ids))
        num_held = round(share * len(prompts)) if len(prompts) > 1 else 0
        order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(mix(seed, 2))).tolist()
        held = {prompts[i] for i in order[:num_held]}
        rows = range(len(self.ids))
        return [i for i in rows if self.prompt_ids[i] not in held], [
            i for i in rows if self.prompt_ids[i] in held
        ]


@dataclass(frozen=True)
class AnchorData:
    """Real clips for the likelihood term: latents [M, C, T', H', W']; conditions as in `PairData`."""

    latents: Latents
    conditions: Condition
    condition_rows: Sequence[int] = ()

    def condition(self, rows: Sequence[int]) -> Condition:
        return self.conditions.rows([self.condition_rows[i] for i in rows] if self.condition_rows else rows)


def _some(ids: Sequence[str], num: int = 3) -> str:
    return ", ".join(ids[:num]) + (f" and {len(ids) - num} more" if len(ids) > num else "")
