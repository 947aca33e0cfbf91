"""What the judge's three trainers share: their arguments, their log, and what stops them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig as PeftLoraConfig
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, Trainer, TrainerCallback

from reward.config import TrainJudgeConfig

ProgressCallback = Callable[[int, int], None]  # steps done, steps in all
LogCallback = Callable[[dict[str, Any]], None]  # one row: phase, step, loss, …

_NOT_LOGGED = ("epoch", "step_time")  # a log with times would differ from run to run
_WEIGHTS = "trained.safetensors"
_ROWS = "rows.json"
_WHOLE = "whole"  # a file that a checkpoint gets last: a kill may leave half of one


class Watch(TrainerCallback):
    """Reports steps and log rows of all trainers as one run.

    Once `stopping` says so, it has the training saved where a log row ends, which a checkpoint cannot hold a
    part of, and raises InterruptedError.
    """

    def __init__(
        self,
        total: int,
        progress: ProgressCallback | None,
        log: LogCallback | None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.total, self.progress, self.log, self.stopping = total, progress, log, stopping
        self.name, self.offset = "", 0
        self.rows: list[dict[str, Any]] = []

    def phase(self, name: str, offset: int) -> Watch:
        self.name, self.offset, self.rows = name, offset, []
        return self

    def last_of(self, key: str) -> float:
        """A number of the phase's last log row; NaN where there is none."""
        return float(self.rows[-1].get(key, math.nan)) if self.rows else math.nan

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress:
            self.progress(self.offset + state.global_step, self.total)
        between_rows = state.global_step % args.logging_steps != 0 and state.global_step < state.max_steps
        if not between_rows and self.stopping():
            control.should_save = True

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        logs = logs or {}
        if "loss" not in logs:
            return
        numbers = {k: v for k, v in logs.items() if isinstance(v, int | float) and k not in _NOT_LOGGED}
        self._say({"phase": self.name, "step": self.offset + state.global_step, **numbers})

    def resume(self, checkpoint: Path) -> None:
        """Says again what a killed attempt had said up to a checkpoint."""
        for row in json.loads((checkpoint / _ROWS).read_text()):
            self._say(row)
        if self.progress:
            self.progress(self.offset + _step_of(checkpoint), self.total)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Marks the new checkpoint as whole, and removes the others."""
        folder = Path(args.output_dir)
        new = folder / f"checkpoint-{state.global_step}"
        (new / _ROWS).write_text(json.dumps(self.rows))
        (new / _WHOLE).touch()
        for old in folder.glob("checkpoint-*"):
            if old != new:
                (old / _WHOLE).unlink(missing_ok=True)  # first, since a kill may leave half of it
                shutil.rmtree(old)
        if self.stopping():
            raise InterruptedError(f"stopped after step {state.global_step} of {self.name}, which is saved")

    def _say(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self.log:
            self.log(row)


class JudgeTrainer:
    """What a judge needs of each of TRL's trainers; comes before it among the bases."""

    model: Any

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Stops before the optimiser sees a loss that is not finite."""
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the judge's training loss is {loss.item()}; lower train_judge.learning_rate, "
                "preference_learning_rate or grpo_learning_rate, or train in float32"
            )
        return loss

    # Trainer saves under the names of the published weights and loads by those of the modules. Where these
    # differ, as in the Qwen-VL line, it warns and goes on from the untrained judge.

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """What is trained, under the modules' names."""
        assert output_dir is not None
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_file({n: p.detach().contiguous() for n, p in self._trained()}, Path(output_dir) / _WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / _WEIGHTS)
        trained = dict(self._trained())
        assert saved.keys() == trained.keys(), "a checkpoint of another training"
        with torch.no_grad():
            for name, value in saved.items():
                trained[name].copy_(value)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: a checkpoint is for the next attempt alone."""

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]


@dataclass(frozen=True)
class Work:
    """Where the trainers of one round keep what they need while they run, and their seed.

    A training goes on from its last checkpoint in `folder`: it was stopped, or killed with
    `checkpoint_every`.
    """

    folder: Path
    seed: int
    checkpoint_every: int | None = None


def run(trainer: Trainer, watch: Watch) -> None:
    """Train from the start, or from the last whole checkpoint that a killed attempt left."""
    trainer.remove_callback(PrinterCallback)  # stdout is for data
    whole = [path.parent for path in Path(trainer.args.output_dir).glob(f"checkpoint-*/{_WHOLE}")]
    last = max(whole, key=_step_of, default=None)
    if last is None:
        trainer.train()
        return
    watch.resume(last)
    # SFTTrainer counts tokens itself, and from zero
    trainer._total_train_tokens = watch.last_of("num_tokens")
    if _step_of(last) < trainer.args.max_steps:
        trainer.train(resume_from_checkpoint=str(last))
    else:  # train() would go one step too far
        trainer._load_from_checkpoint(str(last))


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def arguments(
    config: TrainJudgeConfig, batch_size: int, num_steps: int, rate: float, work: Work, phase: str
) -> dict[str, Any]:
    """The arguments that all trainers take."""
    seed = work.seed % 2**31
    micro = config.micro_batch_size or batch_size
    return {
        "output_dir": str(work.folder / phase),
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
        "save_strategy": "no" if work.checkpoint_every is None else "steps",
        "save_steps": work.checkpoint_every or num_steps,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": seed,
        "data_seed": seed,
    }


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
