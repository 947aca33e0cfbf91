"""Teach a judge: supervised on replies to imitate, SRPO on its own confident votes, GRPO if wanted.

All are TRL's trainers with a collator of ours, so that training reads exactly the tokens and pixels that
asking does (reward.encoding). The result is a folder that plain transformers loads.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from reward.config import JudgeConfig, TrainJudgeConfig
from reward.encoding import Encoder
from reward.grpo import reinforce
from reward.judges.transformers import load_model
from reward.known_answers import KnownAnswer
from reward.preferences import PreferenceRow, SftRow, mix_sources, weigh_by_certainty
from reward.question import Ask
from reward.trainer import (
    JudgeTrainer,
    LogCallback,
    ProgressCallback,
    Watch,
    Work,
    adapter,
    arguments,
    plain,
    row_numbers,
    run,
)

# max_length=None below: a cut through image tokens raises, one after them drops the reply


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
    known: Sequence[KnownAnswer] = (),
    checkpoints: Path | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Train the judge at `model_ref` (folder or hub id) and save model and processor to `out`.

    Supervised steps on `rows_sft`; then, where there are `rows_pref` that the judge voted on, SRPO against
    the judge as the supervised steps left it, weighted by PCE against `model_ref`, in the shares that
    `config` gives each source; then GRPO on `known`. The same arguments give the same bytes on a CPU. Sets
    the global random seeds. `checkpoints` is a folder that outlives a kill: with `checkpoint_every` the same
    call goes on from there, to the same bytes. It also does so after `stopping` (needs `checkpoints`) has
    said so: then the training is saved at its next log row and InterruptedError is raised. Returns what to
    report: rows used and dropped, last losses.
    Raises ValueError for a model that cannot be loaded and a seed row longer than a reply may be,
    FloatingPointError for a loss that is not finite.
    """
    model, processor = load_model(judge_config.model_copy(update={"model": str(model_ref)}), dtype="float32")
    encoder = Encoder(processor, judge_config)
    _check_lengths(encoder, rows_sft, judge_config.max_new_tokens)
    as_loaded = copy.deepcopy(model.config)
    folder = checkpoints or out.with_name(f"_{out.name}_scratch")
    work = Work(folder, seed, config.checkpoint_every if checkpoints else None)
    rows = _Rows(rows_sft, rows_pref, known)
    try:
        model, report = _phases(model, encoder, rows, config, judge_config, work, progress, log, stopping)
    finally:
        if not checkpoints:
            shutil.rmtree(folder, ignore_errors=True)
    model.config = as_loaded  # trainers write into it what is theirs alone, such as use_cache
    model.to(getattr(torch, config.dtype)).save_pretrained(out)
    processor.save_pretrained(out)
    return report


@dataclass(frozen=True)
class _Rows:
    supervised: Sequence[SftRow]
    preferred: Sequence[PreferenceRow]
    known: Sequence[KnownAnswer]


def _phases(
    model: Any,
    encoder: Encoder,
    rows: _Rows,
    config: TrainJudgeConfig,
    judge_config: JudgeConfig,
    work: Work,
    progress: ProgressCallback | None,
    log: LogCallback | None,
    stopping: Callable[[], bool],
) -> tuple[Any, dict[str, float]]:
    """The model after all phases that have rows, and the report."""
    num_sft = config.num_steps if rows.supervised else 0
    num_pref = config.preference_steps if any(r.source != "known" for r in rows.preferred) else 0
    num_grpo = config.grpo_steps if rows.known else 0
    watch = Watch(num_sft + num_pref + num_grpo, progress, log, stopping)
    report: dict[str, float] = {
        "num_sft_rows": len(rows.supervised),
        "num_preference_rows": len(rows.preferred),
    }
    parent = copy.deepcopy(model) if num_pref else None
    if num_sft:
        model = _supervise(model, encoder, rows.supervised, config, work, watch.phase("sft", 0))
        report["sft_loss"] = watch.last_of("loss")
    if num_pref:
        kept, weighing = _weighed(model, parent, encoder, rows.preferred, config)
        del parent
        report |= weighing
        if kept:
            model = _prefer(model, encoder, kept, config, work, watch.phase("srpo", num_sft))
            report["srpo_loss"] = watch.last_of("loss")
    if num_grpo:
        watch.phase("grpo", num_sft + num_pref)
        model = reinforce(model, encoder, rows.known, config, judge_config, work, watch)
        report["grpo_reward"] = watch.last_of("reward")
    return model, report


def _check_lengths(encoder: Encoder, rows: Sequence[SftRow], most: int) -> None:
    """Raise ValueError for a user's reply that a judge could learn, but never be given the room to write."""
    for row in rows:
        if row.ask.question.kind == "seed" and (length := len(encoder.reply_ids(row.reply))) > most:
            raise ValueError(
                f"{row.ask.question.id}: the reply has {length} tokens, judge.max_new_tokens allows {most}; "
                "shorten the reasoning, or raise it"
            )


def _weighed(
    model: Any, parent: Any, encoder: Encoder, rows: Sequence[PreferenceRow], config: TrainJudgeConfig
) -> tuple[list[PreferenceRow], dict[str, float]]:
    """The rows that SRPO learns from, and what to report: those by vote weigh their PCE, known answers 1."""
    voted = [row for row in rows if row.source != "known"]
    r = reward_of_chosen(model, parent, encoder, voted, config)
    kept, report = weigh_by_certainty(voted, r, config.tau, config.min_pce)
    known = [row for row in rows if row.source == "known"]
    mixed, shares = mix_sources([*kept, *known], config.known_share, config.real_share)
    return mixed, report | shares


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


class SftJudgeTrainer(JudgeTrainer, SFTTrainer):
    """TRL's SFTTrainer on rows of ours."""


class SrpoTrainer(JudgeTrainer, DPOTrainer):
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


def _supervise(
    model: Any, encoder: Encoder, rows: Sequence[SftRow], config: TrainJudgeConfig, work: Work, watch: Watch
) -> Any:
    given = arguments(config, config.batch_size, config.num_steps, config.learning_rate, work, "sft")
    trainer = SftJudgeTrainer(
        model=model,
        args=SFTConfig(max_length=None, **given),
        train_dataset=row_numbers(len(rows)),
        data_collator=SftCollator(encoder, rows),
        processing_class=encoder.processor,
        peft_config=adapter(config),
        callbacks=[watch],
    )
    run(trainer, watch)
    return plain(trainer.model, config)


def _prefer(
    model: Any,
    encoder: Encoder,
    rows: Sequence[PreferenceRow],
    config: TrainJudgeConfig,
    work: Work,
    watch: Watch,
) -> Any:
    # without a reference of its own DPOTrainer reloads the folder the model came from, which is a round old
    reference = None if config.lora else copy.deepcopy(model)
    size, rate = config.preference_batch_size, config.preference_learning_rate
    given = arguments(config, size, config.preference_steps, rate, work, "srpo")
    trainer = SrpoTrainer(
        model=model,
        ref_model=reference,
        args=DPOConfig(beta=config.beta, max_length=None, **given),
        train_dataset=row_numbers(len(rows)),
        data_collator=PreferenceCollator(encoder, rows),
        processing_class=encoder.processor,
        peft_config=adapter(config),
        callbacks=[watch],
    )
    run(trainer, watch)
    return plain(trainer.model, config)
