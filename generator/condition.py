"""What a network is told besides the noisy latents: text embeddings, masks, a first frame, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """Named tensors, each with one row a clip; a family decides which names it needs.

    `condition["text"]` is a tensor, `condition.rows([2, 0])` another Condition.
    """

    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        sizes = {name: len(t) for name, t in self.tensors.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"a condition has one row a clip in every tensor, got {sizes}")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def get(self, name: str) -> Tensor | None:
        return self.tensors.get(name)

    def rows(self, which: slice | Sequence[int] | Tensor) -> Condition:
        """The conditions of some clips, in the given order; a row may come more than once."""
        return Condition({name: t[which] for name, t in self.tensors.items()})

    def repeat(self, num: int) -> Condition:
        """`num` rows of a condition of one row."""
        assert len(self) == 1, "only a condition of one row can be repeated"
        return Condition({name: t.expand(num, *t.shape[1:]) for name, t in self.tensors.items()})

    def to(self, device: torch.device | str) -> Condition:
        return Condition({name: t.to(device) for name, t in self.tensors.items()})

    def with_tensors(self, **more: Tensor) -> Condition:
        """This condition with further tensors, or others in the place of its own."""
        return Condition({**self.tensors, **more})

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """All rows of `parts`, which must name the same tensors."""
        names = list(parts[0].tensors)
        if any(set(p.tensors) != set(names) for p in parts):
            raise ValueError(f"conditions of different kinds: {[sorted(p.tensors) for p in parts]}")
        return Condition({name: torch.cat([p[name] for p in parts]) for name in names})
