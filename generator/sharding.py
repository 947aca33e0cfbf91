"""FSDP2: weights, gradients and optimiser state of an update in parts, one on each rank.

Whatever leaves the ranks (checkpoints, step checkpoints) is whole, in the formats of an update in one
process, so that any number of processes can go on from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from generator.config import UpdateConfig


@dataclass(frozen=True)
class Sharding:
    """How weights are spread over the ranks.

    reshard_after_forward: a block's whole weights are dropped after its forward and gathered again for its
        backward; false keeps the policy's until then, which takes more memory and less communication.
    """

    reshard_after_forward: bool = True

    def check(self, config: UpdateConfig) -> None:
        """Raises ValueError for what cannot be sharded."""
        if not dist.is_initialized():
            raise ValueError("FSDP2 needs processes that accelerate launch (launch.type accelerate) started")
        if config.compile:
            raise ValueError(
                "update.compile is not supported with FSDP2: set it to false, or use an accelerate config "
                "without FSDP"
            )

    def mesh(self, device: torch.device) -> DeviceMesh:
        return init_device_mesh(device.type, (dist.get_world_size(),))


def shard(transformer: nn.Module, mesh: DeviceMesh, device: torch.device, *, reshard: bool) -> None:
    """Splits a transformer over `mesh` in place, block by block; its parameters become DTensors.

    FSDP2 takes one dtype; what a family keeps in another (norms in float32 beside bfloat16 weights) stays
    whole on every rank. Gradients are summed: a loss is divided by the whole batch's count already.
    """
    dtype = _main_dtype(transformer)
    other = {p for p in transformer.parameters() if p.dtype != dtype}
    for p in other:
        p.data = p.data.to(device)
    for module in [*blocks_of(transformer), transformer]:
        fully_shard(module, mesh=mesh, reshard_after_forward=reshard, ignored_params=other)
    for module in transformer.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def blocks_of(transformer: nn.Module) -> list[nn.Module]:
    """The modules that are gathered one at a time, inner ones first: what diffusers never splits.

    Where a class does not say what that is, the entries of its lists of modules.
    """
    names = set(getattr(transformer, "_no_split_modules", None) or ())
    inner = [m for m in transformer.modules() if m is not transformer]
    found = [m for m in inner if type(m).__name__ in names]
    if not found:
        lists = [m for m in transformer.children() if isinstance(m, nn.ModuleList)]
        found = [block for modules in lists for block in modules]
    return found[::-1]


def reshard(transformers: Iterable[nn.Module]) -> None:
    """Drops gathered weights, which would hide a change of the parts."""
    for transformer in transformers:
        for module in transformer.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def whole(value: Any) -> Any:
    """`value`, or a dict or list of such, with every DTensor gathered on rank 0's CPU, empty on other ranks.

    Every rank must call it with the same tensors.
    """
    if isinstance(value, dict):
        return {key: whole(v) for key, v in value.items()}
    if isinstance(value, list):
        return [whole(v) for v in value]
    if not isinstance(value, DTensor):
        return value
    full = value.full_tensor().detach()
    return full.cpu() if dist.get_rank() == 0 else full.new_empty(0, device="cpu")


def part_like(value: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor that all ranks have whole, if `like` is in parts; else the tensor."""
    if not isinstance(like, DTensor):
        return value
    value = value.to(like.device, like.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def load_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads whole states into an optimiser whose parameters may be in parts."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    parts = {
        number: {k: part_like(v, parameters[number]) if v.ndim else v for k, v in values.items()}
        for number, values in state["state"].items()
    }
    optimiser.load_state_dict({**state, "state": parts})


def clip_gradients(parameters: Sequence[nn.Parameter], most: float) -> float:
    """`torch.nn.utils.clip_grad_norm_`, also where some gradients are in parts and others whole."""
    if not any(isinstance(p, DTensor) for p in parameters):
        return torch.nn.utils.clip_grad_norm_(parameters, most).item()
    gradients = [p.grad for p in parameters if p.grad is not None]
    in_parts = [g for g in gradients if isinstance(g, DTensor)]
    others = [g for g in gradients if not isinstance(g, DTensor)]
    squared = 0.0
    for some in (in_parts, others):
        if some:
            norm = torch.nn.utils.get_total_norm(some)
            squared += (norm.full_tensor() if isinstance(norm, DTensor) else norm).item() ** 2
    norm = squared**0.5
    for gradient in gradients:
        gradient.mul_(min(1.0, most / (norm + 1e-6)))
    return norm


def _main_dtype(module: nn.Module) -> torch.dtype:
    """The one that most weights have."""
    counts: Counter[torch.dtype] = Counter()
    for p in module.parameters():
        counts[p.dtype] += p.numel()
    return counts.most_common(1)[0][0]
