"""Teach a judge: supervised on replies to known answers, then SRPO on its own confident votes.

Both steps are TRL's trainers with a collator of ours, so that training reads exactly the tokens and
pixels that asking does (reward.encoding). The result is a folder that plain transformers loads.
"""

from __future__ import annotations

import contextlib
import copy
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig as PeftLoraConfig
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from reward.config import JudgeConfig, TrainJudgeConfig
from reward.encoding import Encoder
from reward.judges.transformers import load_model
from reward.preferences import PreferenceRow, SftRow, weigh_by_certainty
from reward.question import Ask

ProgressCallback = Callable[[int, int], None]  # steps done, steps in all
LogCallback = Callable[[dict[str, Any]], None]  # one row: phase, step, loss, …


def train_judge(
    model_ref: str | Path,
    rows_sft: Sequence[SftRow],
    rows_pref: Sequence[PreferenceRow],
    config: TrainJudgeConfig,
    judge_config: JudgeConfig,
    out: Path,
    seed: int,
    progress: ProgressCallback | None = None,
    log: LogCallback | None = None,
) -> dict[str, float]:
    """Train the judge at `model_ref` (folder or hub id) and save model and processor to `out`.

    Supervised steps on `rows_sft`, then, where there are `rows_pref`, SRPO against the judge as the
    supervised steps left it, weighted by PCE against `model_ref`. The same arguments give the same bytes on
    a CPU. Sets the global random seeds. Returns what to report: rows used and dropped, last losses.
    Raises ValueError for a model that cannot be loaded, FloatingPointError for a loss that is not finite.
    """
    model, processor = load_model(judge_config.model_copy(update={"model": str(model_ref)}), dtype="float32")
    encoder = Encoder(processor, judge_config)
    num_sft = config.num_steps if rows_sft else 0
    num_pref = config.preference_steps if rows_pref else 0
    watch = Watch(num_sft + num_pref, progress, log)
    report: dict[str, float] = {"num_sft_rows": len(rows_sft), "num_preference_rows": len(rows_pref)}
    parent = copy.deepcopy(model) if num_pref else None
    if num_sft:
        model = _supervise(model, encoder, rows_sft, config, out, seed, watch.phase("sft", 0))
        report["sft_loss"] = watch.last_loss
    if num_pref:
        assert parent is not None
        r = reward_of_chosen(model, parent, encoder, rows_pref, config)
        del parent
        kept, weighing = weigh_by_certainty(rows_pref, r, config.tau, config.min_pce)
        report |= weighing
        if kept:
            model = _prefer(model, encoder, kept, config, out, seed, watch.phase("srpo", num_sft))
            report["srpo_loss"] = watch.last_loss
    model.to(getattr(torch, config.dtype)).save_pretrained(out)
    processor.save_pretrained(out)
    return report


def reward_of_chosen(
    model: torch.nn.Module,
    parent: torch.nn.Module,
    encoder: Encoder,
    rows: Sequence[PreferenceRow],
    config: TrainJudgeConfig,
) -> np.ndarray:
    """R of the chosen replies [num_rows], nats per token: log π_model − log π_parent, length-normalised."""
    asks, replies = [row.ask for row in rows], [row.chosen for row in rows]
    size = config.micro_batch_size or config.preference_batch_size
    now, before = (mean_log_probs(judge, encoder, asks, replies, size) for judge in (model, parent))
    return now - before


@torch.inference_mode()
def mean_log_probs(
    model: Any, encoder: Encoder, asks: Sequence[Ask], replies: Sequence[str], batch_size: int
) -> np.ndarray:
    """Mean log-probability of a reply's tokens [num_replies], nats, each given its ask."""
    model.eval()
    means: list[float] = []
    for start in range(0, len(asks), batch_size):
        chunk = slice(start, start + batch_size)
        ids = [encoder.reply_ids(reply) for reply in replies[chunk]]
        batch = encoder.collate([encoder.prompt(ask) for ask in asks[chunk]], ids)
        batch = {name: value.to(model.device) for name, value in batch.items()}
        mask = batch.pop("completion_mask")[:, 1:]
        logits = model(**batch, use_cache=False).logits[:, :-1].float()
        log_probs = logits.log_softmax(dim=-1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]
        means += ((log_probs * mask).sum(dim=1) / mask.sum(dim=1)).tolist()
    return np.array(means)


class Watch(TrainerCallback):
    """Reports steps and log rows of all trainers of a judge as one run."""

    def __init__(self, total: int, progress: ProgressCallback | None, log: LogCallback | None) -> None:
        self.total, self.progress, self.log = total, progress, log
        self.name, self.offset, self.last_loss = "", 0, math.nan

    def phase(self, name: str, offset: int) -> Watch:
        self.name, self.offset = name, offset
        return self

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress:
            self.progress(self.offset + state.global_step, self.total)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        logs = logs or {}
        if "loss" not in logs:
            return
        self.last_loss = float(logs["loss"])
        if self.log:
            numbers = {k: v for k, v in logs.items() if isinstance(v, int | float) and k != "epoch"}
            self.log({"phase": self.name, "step": self.offset + state.global_step, **numbers})


class Finite:
    """Stops before the optimiser sees a loss that is not finite."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the judge's training loss is {loss.item()}; lower train_judge.learning_rate or "
                "preference_learning_rate, or train in float32"
            )
        return loss


class SftJudgeTrainer(Finite, SFTTrainer):
    """TRL's SFTTrainer on rows of ours."""


class SrpoTrainer(Finite, DPOTrainer):
    """DPO with a weight a row: L = mean(w · −log σ(β · (Δ_chosen − Δ_rejected))) (Dual-IPO, L_SRPO)."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        inputs = dict(inputs)
        weights_B = inputs.pop("weight")
        completion_mask = inputs["completion_mask"]
        kwargs = {name: value for name, value in inputs.items() if name != "completion_mask"}
        labels = inputs["input_ids"].masked_fill(completion_mask == 0, -100)
        outputs = model(**kwargs, use_cache=False, labels=labels, fused_lm_head=True)
        chosen_B, rejected_B = outputs.log_probs.sum(dim=1).chunk(2)
        ref_chosen_B, ref_rejected_B = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
        margin_B = self.beta * ((chosen_B - ref_chosen_B) - (rejected_B - ref_rejected_B))
        loss = (weights_B * -F.logsigmoid(margin_B)).mean()
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["margin"].append(margin_B.mean().item())
        metrics["accuracy"].append((margin_B > 0).float().mean().item())
        return (loss, outputs) if return_outputs else loss


class SftCollator:
    """Row numbers to a batch of TRL's SFTTrainer: labels are the reply's tokens."""

    def __init__(self, encoder: Encoder, rows: Sequence[SftRow]) -> None:
        self.encoder, self.rows = encoder, rows

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [self.rows[example["row"]] for example in examples]
        prompts = [self.encoder.prompt(row.ask) for row in rows]
        batch = self.encoder.collate(prompts, [self.encoder.reply_ids(row.reply) for row in rows])
        batch["labels"] = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
        return batch


class PreferenceCollator:
    """Row numbers to a batch of TRL's DPOTrainer: all chosen replies, then all rejected ones."""

    def __init__(self, encoder: Encoder, rows: Sequence[PreferenceRow]) -> None:
        self.encoder, self.rows = encoder, rows

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [self.rows[example["row"]] for example in examples]
        prompts = [self.encoder.prompt(row.ask) for row in rows]
        replies = [
            self.encoder.reply_ids(reply)
            for reply in [*(r.chosen for r in rows), *(r.rejected for r in rows)]
        ]
        batch = self.encoder.collate([*prompts, *prompts], replies)
        batch["weight"] = torch.tensor([row.weight for row in rows])
        return batch


def row_numbers(num_rows: int) -> Dataset:
    """A data set of row numbers: pixels stay out of Arrow, the `images` column tells TRL what it is about."""
    numbers = list(range(num_rows))
    return Dataset.from_dict({"row": numbers, "images": [[number] for number in numbers]})


def _supervise(
    model: Any,
    encoder: Encoder,
    rows: Sequence[SftRow],
    config: TrainJudgeConfig,
    out: Path,
    seed: int,
    watch: Watch,
) -> Any:
    steps, rate = config.num_steps, config.learning_rate
    with trainer_arguments(config, config.batch_size, steps, rate, out, seed) as shared:
        trainer = SftJudgeTrainer(
            model=model,
            args=SFTConfig(**shared, **_trl_arguments(config)),
            train_dataset=row_numbers(len(rows)),
            data_collator=SftCollator(encoder, rows),
            processing_class=encoder.processor,
            peft_config=peft_config_of(config),
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)  # stdout is for data
        trainer.train()
    return _plain(trainer.model, config)


def _prefer(
    model: Any,
    encoder: Encoder,
    rows: Sequence[PreferenceRow],
    config: TrainJudgeConfig,
    out: Path,
    seed: int,
    watch: Watch,
) -> Any:
    # without a reference of its own DPOTrainer reloads the folder the model came from, which is a round old
    reference = None if config.lora else copy.deepcopy(model)
    steps, rate = config.preference_steps, config.preference_learning_rate
    with trainer_arguments(config, config.preference_batch_size, steps, rate, out, seed) as shared:
        trainer = SrpoTrainer(
            model=model,
            ref_model=reference,
            args=DPOConfig(beta=config.beta, **shared, **_trl_arguments(config)),
            train_dataset=row_numbers(len(rows)),
            data_collator=PreferenceCollator(encoder, rows),
            processing_class=encoder.processor,
            peft_config=peft_config_of(config),
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)  # stdout is for data
        trainer.train()
    return _plain(trainer.model, config)


@contextlib.contextmanager
def trainer_arguments(
    config: TrainJudgeConfig, batch_size: int, num_steps: int, rate: float, out: Path, seed: int
) -> Any:
    """transformers' arguments that all trainers share, with a scratch folder that lives as long as the
    training.

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


def _trl_arguments(config: TrainJudgeConfig) -> dict[str, Any]:
    return {
        "activation_checkpointing": config.gradient_checkpointing,
        "max_length": None,  # a cut through image tokens raises, one after them drops the reply
    }


def peft_config_of(config: TrainJudgeConfig) -> PeftLoraConfig | None:
    if config.lora is None:
        return None
    return PeftLoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        target_modules=list(config.lora.target_modules),
        task_type="CAUSAL_LM",
    )


def _plain(model: Any, config: TrainJudgeConfig) -> Any:
    """The trained model without what the trainer put around it."""
    return (model.merge_and_unload() if config.lora else model).eval()
