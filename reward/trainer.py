"""What the judge's three trainers share: their arguments, their log, and what stops them."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig as PeftLoraConfig
from transformers import PrinterCallback, Trainer, TrainerCallback

from reward.config import TrainJudgeConfig

ProgressCallback = Callable[[int, int], None]  # steps done, steps in all
LogCallback = Callable[[dict[str, Any]], None]  # one row: phase, step, loss, …

_NOT_LOGGED = ("epoch", "step_time")  # a log with times would differ from run to run


class Watch(TrainerCallback):
    """Reports steps and log rows of all trainers as one run."""

    def __init__(self, total: int, progress: ProgressCallback | None, log: LogCallback | None) -> None:
        self.total, self.progress, self.log = total, progress, log
        self.name, self.offset = "", 0
        self.last: dict[str, float] = {}

    def phase(self, name: str, offset: int) -> Watch:
        self.name, self.offset, self.last = name, offset, {}
        return self

    def last_of(self, key: str) -> float:
        """A number of the phase's last log row; NaN where there is none."""
        return float(self.last.get(key, math.nan))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress:
            self.progress(self.offset + state.global_step, self.total)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        logs = logs or {}
        if "loss" not in logs:
            return
        self.last = {k: v for k, v in logs.items() if isinstance(v, int | float) and k not in _NOT_LOGGED}
        if self.log:
            self.log({"phase": self.name, "step": self.offset + state.global_step, **self.last})


class Finite:
    """Stops before the optimiser sees a loss that is not finite."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the judge's training loss is {loss.item()}; lower train_judge.learning_rate, "
                "preference_learning_rate or grpo_learning_rate, or train in float32"
            )
        return loss


def run(trainer: Trainer) -> None:
    trainer.remove_callback(PrinterCallback)  # stdout is for data
    trainer.train()


@contextlib.contextmanager
def arguments(
    config: TrainJudgeConfig, batch_size: int, num_steps: int, rate: float, out: Path, seed: int
) -> Iterator[dict[str, Any]]:
    """The arguments that all trainers take, with a scratch folder that lives as long as the training.

    The folder stands beside `out` under a fixed name: what a killed training leaves, the next one removes.
    """
    seed = seed % 2**31
    micro = config.micro_batch_size or batch_size
    scratch = out.with_name(f"_{out.name}_scratch")
    try:
        yield {
            "output_dir": str(scratch),
            "max_steps": num_steps,
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": batch_size // micro,
            "learning_rate": rate,
            "warmup_steps": config.warmup_steps,
            "weight_decay": config.weight_decay,
            "max_grad_norm": config.max_grad_norm,
            "bf16": config.dtype == "bfloat16",
            "activation_checkpointing": config.gradient_checkpointing,
            "use_cpu": not torch.cuda.is_available(),
            "remove_unused_columns": False,
            "logging_steps": config.log_every,
            "logging_nan_inf_filter": False,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "seed": seed,
            "data_seed": seed,
        }
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def adapter(config: TrainJudgeConfig) -> PeftLoraConfig | None:
    """The configured LoRA as PEFT knows it; None = full weights."""
    if config.lora is None:
        return None
    return PeftLoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        target_modules=list(config.lora.target_modules),
        task_type="CAUSAL_LM",
    )


def plain(model: Any, config: TrainJudgeConfig) -> Any:
    """The trained model without what the trainer put around it."""
    return (model.merge_and_unload() if config.lora else model).eval()


def row_numbers(num_rows: int) -> Dataset:
    """A data set of row numbers: pixels stay out of Arrow, the `images` column tells TRL what it is about."""
    numbers = list(range(num_rows))
    return Dataset.from_dict({"row": numbers, "images": [[number] for number in numbers]})
