"""The processes that share an update (torchrun), or the one that has it to itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from generator.config import UpdateConfig

T = TypeVar("T")


class Ranks:
    """Every rank knows the whole batch and takes its share; gradients and errors are summed or gathered.

    Since each loss term is divided by the whole batch's count, the sum over ranks is the gradient that one
    process would have found.
    """

    def __init__(self) -> None:
        ready = dist.is_available() and dist.is_initialized()
        self.rank, self.num = (dist.get_rank(), dist.get_world_size()) if ready else (0, 1)

    def check_shares(self, config: UpdateConfig) -> None:
        """Raises ValueError where a step has too little for every rank to take a part in it."""
        sizes = {"pairs_per_step": config.needs_pairs, "anchors_per_step": config.real_weight > 0}
        for key, used in sizes.items():
            if used and getattr(config, key) < self.num:
                raise ValueError(
                    f"update.{key} is {getattr(config, key)}, fewer than the {self.num} processes of this "
                    f"update; raise it to {self.num} or start fewer"
                )

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's part, in order; the parts differ by one item at most."""
        return self.shares(items)[self.rank]

    def shares(self, items: Sequence[T]) -> list[list[T]]:
        """Every rank's part."""
        return [list(items[rank :: self.num]) for rank in range(self.num)]

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        if self.num == 1:
            return
        for p in parameters:
            if isinstance(p, DTensor):  # FSDP has summed it
                continue
            if p.grad is None:  # a rank without a share of this term
                p.grad = torch.zeros_like(p)
            dist.all_reduce(p.grad)

    def num_chunks(self, num_items: int, most: int) -> int:
        """Into how many parts every rank can cut its share of a step: at most `most`, and alike on all."""
        return min(most, num_items // self.num)

    def gather_objects(self, mine: T) -> list[T]:
        """What every rank has, in the order of ranks."""
        if self.num == 1:
            return [mine]
        parts: list[Any] = [None] * self.num
        dist.all_gather_object(parts, mine)
        return parts

    def gather(self, rows: Tensor) -> Tensor:
        """All ranks' rows, [ΣB, …], in the order of ranks; B may differ."""
        if self.num == 1:
            return rows
        return torch.cat(self.gather_objects(rows.detach().cpu())).to(rows.device)

    def any(self, mine: bool) -> bool:
        """Whether it is so on any rank; all of them ask at the same time."""
        if self.num == 1:
            return mine
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        said = torch.tensor(int(mine), device=device)
        dist.all_reduce(said, dist.ReduceOp.MAX)
        return bool(said.item())

    def wait(self) -> None:
        if self.num > 1:
            dist.barrier()
