"""Teach a scorer: Bradley-Terry with ties over pairs of clips whose better one is known, in every dimension.

A transformers Trainer of our own, since TRL's RewardTrainer drops images without a word. Training reads
exactly the tokens and pixels that scoring does (reward/scorers/encoding.py).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import get_peft_model
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

from reward.config import JudgeConfig, ScorerConfig, TrainJudgeConfig
from reward.known_answers import KnownAnswer
from reward.question import Answer
from reward.scorers.encoding import ClipEncoder
from reward.scorers.head import HeadFile, Mix
from reward.scorers.linear import LinearScorer, RewardModel, save_scorer
from reward.trainer import (
    JudgeTrainer,
    LogCallback,
    ProgressCallback,
    Watch,
    Work,
    adapter,
    arguments,
    row_numbers,
)

_SIGNS: dict[Answer, int] = {"first": 1, "second": -1, "tie": 0}


def train_scorer(
    model_ref: str | Path,
    known: Sequence[KnownAnswer],
    config: TrainJudgeConfig,
    judge_config: JudgeConfig,
    out: Path,
    seed: int,
    progress: ProgressCallback | None = None,
    log: LogCallback | None = None,
) -> dict[str, float]:
    """Train the scorer at `model_ref` (folder or hub id) on `known` answers and save it to `out`.

    `out` is a folder that LinearScorer loads. The same arguments give the same bytes on a CPU. Sets the
    global random seeds. Returns what to report: the number of pairs, the last loss. Raises ValueError for a
    model that cannot be loaded or answers that the loss cannot take, FloatingPointError for a loss that is
    not finite.
    """
    scorer = LinearScorer(judge_config.model_copy(update={"model": str(model_ref)}), dtype="float32")
    _check_ties(known, judge_config)
    num_steps = config.num_steps if known else 0
    watch = Watch(num_steps, progress, log)
    report: dict[str, float] = {"num_pairs": len(known)}
    if num_steps:
        work = Work(out.with_name(f"_{out.name}_scratch"), seed)
        try:
            _fit(scorer, known, config, judge_config, work, watch.phase("btt", 0))
        finally:
            shutil.rmtree(work.folder, ignore_errors=True)
        report["btt_loss"] = watch.last_of("loss")
    scorer.model.backbone.to(getattr(torch, config.dtype))
    save_scorer(scorer.head, scorer.model, scorer.processor, out)
    return report


def btt_loss(delta_BD: torch.Tensor, signs_BD: torch.Tensor, threshold_D: torch.Tensor) -> torch.Tensor:
    """−log P of the known answers [B, D] under Rao & Kupper (reward/scorers/ties.py), in nats.

    `delta_BD`: score of the first clip − that of the second, in logits; `signs_BD`: 1 first is better, −1
    second, 0 a tie; `threshold_D`: κ above 0. VideoReward's loss (arXiv 2501.13918) with θ = e^κ.
    """
    first, second = F.logsigmoid(delta_BD - threshold_D), F.logsigmoid(-delta_BD - threshold_D)
    # log(θ² − 1) = 2κ + log(1 − e^(−2κ))
    tie = first + second + 2 * threshold_D + torch.log(-torch.expm1(-2 * threshold_D))
    return -torch.where(signs_BD > 0, first, torch.where(signs_BD < 0, second, tie))


class ScorerTrainer(JudgeTrainer, Trainer):
    """Trainer whose loss is `btt_loss`, the mean over pairs and dimensions."""

    optimizer: Any

    def __init__(self, *, mix: Mix, scoring: ScorerConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        logits_DO, shares_DO = torch.from_numpy(mix.logits_DO), torch.from_numpy(mix.shares_DO)
        self.logits_DO = logits_DO.float().to(self.args.device)
        self.shares_DO = shares_DO.float().to(self.args.device)
        self.scoring = scoring
        self._right: list[float] = []

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's own optimiser with one more group: the head, at its own rate and without decay."""
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(self.model))
            named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
            body = [(n, p) for n, p in named if n.startswith("backbone.")]
            groups: list[dict[str, Any]] = [
                {
                    "params": [p for n, p in body if (n in decayed) == decay],
                    "weight_decay": self.args.weight_decay if decay else 0.0,
                }
                for decay in (True, False)
            ]
            head = [p for n, p in named if not n.startswith("backbone.")]
            groups.append({"params": head, "weight_decay": 0.0, "lr": self.scoring.head_learning_rate})
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = kind([group for group in groups if group["params"]], **settings)
        return self.optimizer

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        inputs = dict(inputs)
        signs_BD = inputs.pop("signs")
        raw_PO = model(inputs)  # first clips, then second clips
        first_BO, second_BO = raw_PO.chunk(2)
        delta_BD = (first_BO - second_BO) @ self.logits_DO.T
        reward_model: RewardModel = self.accelerator.unwrap_model(model)
        threshold_D = self.shares_DO @ reward_model.log_threshold.exp()
        if self.scoring.tie_threshold is not None:
            threshold_D = torch.full_like(threshold_D, self.scoring.tie_threshold)
        loss = btt_loss(delta_BD, signs_BD, threshold_D).mean()
        decided = signs_BD != 0
        if decided.any():
            self._right.append((delta_BD.sign() == signs_BD)[decided].float().mean().item())
        return (loss, {"raw": raw_PO}) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """`accuracy`: of the pairs with a better clip since the last row, the share with the higher score."""
        if "loss" in logs and self._right:
            logs["accuracy"] = sum(self._right) / len(self._right)
            self._right = []
        super().log(logs, *args, **kwargs)


class PairCollator:
    """Row numbers to a batch: all first clips, then all second clips, and `signs` [B, D] of the answers."""

    def __init__(self, encoder: ClipEncoder, head: HeadFile, known: Sequence[KnownAnswer]) -> None:
        self.encoder, self.instructions, self.known = encoder, head.instructions, known

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [self.known[example["row"]] for example in examples]
        readers = [*((k.question.first, k) for k in rows), *((k.question.second, k) for k in rows)]
        prompts = [self.encoder.clip(reader, k.question, self.instructions) for reader, k in readers]
        dimensions = self.encoder.config.dimensions
        signs = torch.tensor([[_SIGNS[k.answers[name]] for name in dimensions] for k in rows])
        return {**self.encoder.batch(prompts), "signs": signs}


def _fit(
    scorer: LinearScorer,
    known: Sequence[KnownAnswer],
    config: TrainJudgeConfig,
    judge_config: JudgeConfig,
    work: Work,
    watch: Watch,
) -> None:
    model = scorer.model
    set_seed(work.seed % 2**31)  # an adapter is drawn before the trainer sets its seed
    lora = adapter(config)
    if lora is not None:
        model.backbone = get_peft_model(model.backbone, lora)
    if config.gradient_checkpointing:
        model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    fixed = judge_config.scoring.tie_threshold
    model.log_threshold.requires_grad_(fixed is None)
    given = arguments(config, config.batch_size, config.num_steps, config.learning_rate, work, "btt")
    given.pop("activation_checkpointing")  # TRL's; the backbone has it from above
    settings = TrainingArguments(**given)
    # first and second clips are halves of one batch; DataParallel would deal it out over devices
    settings._n_gpu = min(settings.n_gpu, 1)
    trainer = ScorerTrainer(
        mix=scorer.mix,
        scoring=judge_config.scoring,
        model=model,
        args=settings,
        train_dataset=row_numbers(len(known)),
        data_collator=PairCollator(scorer.encoder, scorer.head, known),
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)  # stdout is for data
    trainer.train()
    if lora is not None:
        model.backbone = model.backbone.merge_and_unload()
    if fixed:
        model.log_threshold.data.fill_(math.log(fixed))
    model.eval()


def _check_ties(known: Sequence[KnownAnswer], judge_config: JudgeConfig) -> None:
    ties = any(answer == "tie" for k in known for answer in k.answers.values())
    if ties and judge_config.scoring.tie_threshold == 0:
        raise ValueError(
            "judge.scorer.tie_threshold is 0, which leaves ties no probability, but the known answers hold "
            "ties: set it above 0, or to null to learn it"
        )
