"""The processes of one stage under `accelerate launch`: how they meet, where each computes, what they share.

Everywhere else a stage is alone: one process, on the first GPU or the CPU.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from loop.errors import UserError

if TYPE_CHECKING:
    from generator.config import UpdateConfig
    from generator.sharding import Sharding

# What an accelerate config may ask for that is not read here, with the only value that is true.
_FIXED = {
    "FSDP_VERSION": ("fsdp_version", "2", ""),
    "FSDP_OFFLOAD_PARAMS": ("fsdp_offload_params", "false", ""),
    "FSDP_AUTO_WRAP_POLICY": ("fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP", ""),
    "FSDP_ACTIVATION_CHECKPOINTING": (
        "fsdp_activation_checkpointing", "false", " and use update.activation_checkpointing"
    ),
}  # fmt: skip


def start() -> int:
    """Joins the processes that accelerate started, by NCCL on GPUs or gloo on CPUs; returns this one's rank.

    ACCELERATE_USE_CPU keeps it from GPUs that are there.
    """
    if "LOCAL_RANK" not in os.environ:
        return 0
    import torch
    from accelerate import PartialState

    if _flag(os.environ, "ACCELERATE_USE_CPU") or not torch.cuda.is_available():
        return PartialState(cpu=True, backend="gloo").process_index
    return PartialState().process_index


def end() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number; 0 where it is alone."""
    import torch.distributed as dist

    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """The number of processes of the stage."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_initialized() else 1


def description() -> str:
    """Who works here, in words."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return "one process"
    return f"{dist.get_world_size()} processes over {dist.get_backend()}, the first on {device()}"


def device() -> str:
    """Where this process computes."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cpu" if dist.get_backend() == "gloo" else f"cuda:{torch.cuda.current_device()}"


def accelerators() -> int:
    """How many accelerators the stage's processes have, one each; 0 on a CPU and without torch."""
    return 0 if "torch" not in sys.modules or device() == "cpu" else size()


def sharding(update: UpdateConfig, environ: Mapping[str, str] = os.environ) -> Sharding | None:
    """How the accelerate config wants the weights split; None = every process has them whole.

    Raises UserError for a config that asks for what would silently not happen.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        return None
    if environ.get("ACCELERATE_MIXED_PRECISION", "no") not in ("no", _PRECISION[update.dtype]):
        raise UserError(
            f"launch.accelerate_config: mixed_precision {environ['ACCELERATE_MIXED_PRECISION']} is not what "
            f"update.dtype {update.dtype} says; update.dtype decides: set mixed_precision to 'no'"
        )
    if not _flag(environ, "ACCELERATE_USE_FSDP"):
        return None
    for variable, (key, value, remedy) in _FIXED.items():
        if environ.get(variable, value).lower() != value.lower():
            raise UserError(
                f"launch.accelerate_config: fsdp_config.{key} {environ[variable]} is not supported; "
                f"set it to {value}{remedy}"
            )
    from generator.sharding import Sharding

    return Sharding(
        reshard_after_forward=environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"
    )


_PRECISION = {"float32": "no", "bfloat16": "bf16"}


def _flag(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").lower() in ("1", "true")
