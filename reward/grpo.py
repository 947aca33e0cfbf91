"""GRPO for a judge, on questions whose answers are known: several replies to each, better ones made likelier.

TRL's GRPOTrainer gives the batches, the loss and the optimiser. How a question becomes tokens, how a reply is
drawn and what it is worth is ours, so that training samples what asking samples and scores the same tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from trl import GRPOConfig, GRPOTrainer

from reward.config import JudgeConfig, TrainJudgeConfig
from reward.encoding import Encoder
from reward.judges.transformers import TransformersJudge
from reward.known_answers import KnownAnswer
from reward.question import Answer, Ask
from reward.trainer import JudgeTrainer, Watch, Work, adapter, arguments, plain, row_numbers, run

MALFORMED = -0.1  # ours: worse than a wrong answer, or a judge that knows none need not keep the grammar
_VISION = frozenset(("pixel_values", "image_grid_thw", "pixel_attention_mask", "image_sizes"))


def reward_of(
    given: Mapping[str, Answer] | None,
    truth: Mapping[str, Answer],
    kind: Literal["overall", "mean"] = "overall",
) -> float:
    """What a reply is worth: `given` are the answers read from it, None for a reply outside the grammar.

    1 for the right answer in `overall` (in the last dimension where that is not asked), or with "mean" the
    share of dimensions that are right; MALFORMED for a reply that has no answers.
    """
    if given is None:
        return MALFORMED
    if kind == "mean":
        return sum(given[name] == answer for name, answer in truth.items()) / len(truth)
    name = "overall" if "overall" in truth else list(truth)[-1]
    return float(given[name] == truth[name])


def advantages_of(rewards_QG: torch.Tensor) -> torch.Tensor:
    """(r − mean) / (standard deviation + 1e-4) within each question's replies [Q, G], as TRL has it."""
    centred_QG = rewards_QG - rewards_QG.mean(dim=1, keepdim=True)
    return centred_QG / (rewards_QG.std(dim=1, keepdim=True) + 1e-4)


class GrpoJudgeTrainer(JudgeTrainer, GRPOTrainer):
    """TRL's GRPOTrainer on known answers; `judge` draws replies with the very model that is trained."""

    def __init__(
        self, *, judge: TransformersJudge, rows: Sequence[KnownAnswer], reward: Any, **kwargs: Any
    ) -> None:
        def score(completions: Sequence[Any], **columns: Any) -> list[float]:
            raise AssertionError("replies are scored where they are drawn")

        super().__init__(
            reward_funcs=score,
            train_dataset=row_numbers(len(rows)),
            processing_class=judge.encoder.tokenizer,
            **kwargs,
        )
        assert self.accelerator.num_processes == 1, "train_judge runs in one process"
        self.judge, self.rows, self.reward = judge, rows, reward
        self.num_drawn = (
            0  # draws so far: every visit of a question has its own ballots, and so its own seeds
        )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """A generation batch for `_compute_loss`; TRL repeats each row `num_generations` times, in a run."""
        known = [self.rows[row["row"]] for row in inputs]
        # every visit of a question has its own ballots, and so its own seeds
        first_ballot = self.state.global_step * self.num_generations
        asks = [Ask(k.question, False, first_ballot + i % self.num_generations) for i, k in enumerate(known)]
        replies = self._draw(asks)
        answers = [self.judge.read(ids, ask).answers for ids, ask in zip(replies, asks, strict=True)]
        rewards = [reward_of(given, k.answers, self.reward) for given, k in zip(answers, known, strict=True)]
        rewards_QG = torch.tensor(rewards, device=self.accelerator.device).view(-1, self.num_generations)
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["reward"].append(rewards_QG.mean().item())
        metrics["malformed"].append(sum(given is None for given in answers) / len(answers))
        # where all replies to a question are worth the same, nothing is learnt from it
        metrics["undecided"].append((rewards_QG.std(dim=1) == 0).float().mean().item())
        return self._batch(asks, replies) | {"advantages": advantages_of(rewards_QG).flatten()}

    def _draw(self, asks: Sequence[Ask]) -> list[list[int]]:
        """The tokens of one reply to each ask, with what ends it."""
        training = self.model.training
        self.model.eval()
        try:
            with self.compute_loss_context_manager():
                return [reply.ids for reply in self.judge.write(asks)]
        finally:
            self.model.train(training)

    def _batch(self, asks: Sequence[Ask], replies: Sequence[list[int]]) -> dict[str, Any]:
        prompts = [self.judge.encoder.prompt(ask) for ask in asks]
        batch = self.judge.encoder.collate(prompts, replies)
        if strange := set(prompts[0].vision) - _VISION:
            raise ValueError(
                f"train_judge.grpo_steps: TRL's GRPO takes no {', '.join(sorted(strange))}, which "
                f"judge.model {self.judge.config.model!r} needs; set grpo_steps to 0"
            )
        batch = {name: value.to(self.accelerator.device) for name, value in batch.items()}
        tail = max(len(ids) for ids in replies)
        mask = batch.pop("completion_mask")[:, -tail:]
        ids, attention = batch.pop("input_ids"), batch.pop("attention_mask")
        return {
            **batch,  # mm_token_type_ids over prompt and reply, and the vision inputs
            "prompt_ids": ids[:, :-tail],
            "prompt_mask": attention[:, :-tail],
            "completion_ids": ids[:, -tail:],
            "completion_mask": mask,
            "num_items_in_batch": mask.sum(),
            "num_images": [prompt.num_images for prompt in prompts],
        }


def reinforce(
    model: Any,
    encoder: Encoder,
    rows: Sequence[KnownAnswer],
    config: TrainJudgeConfig,
    judge_config: JudgeConfig,
    work: Work,
    watch: Watch,
) -> Any:
    """`model` after GRPO on `rows`, with TRL's defaults beside what the config names: no reference, β = 0.

    Raises ValueError for fewer questions than a step has, FloatingPointError for a loss that is not finite.
    """
    needed = config.grpo_batch_size // config.grpo_replies
    if len(rows) < needed:
        raise ValueError(
            f"train_judge.grpo_batch_size: a GRPO step has {needed} questions, but there are {len(rows)}; "
            "give more known answers, or lower grpo_batch_size"
        )
    judge = TransformersJudge(judge_config, (model, encoder.processor))
    trainer = GrpoJudgeTrainer(
        judge=judge,
        rows=rows,
        reward=config.grpo_reward,
        model=model,
        args=GRPOConfig(
            beta=0.0,
            num_generations=config.grpo_replies,
            max_completion_length=judge_config.max_new_tokens,
            temperature=judge_config.temperature,
            shuffle_dataset=False,  # known answers come at random already, and TRL's order cannot be resumed
            **arguments(
                config, config.grpo_batch_size, config.grpo_steps, config.grpo_learning_rate, work, "grpo"
            ),
        ),
        peft_config=adapter(config),
        callbacks=[watch],
    )
    judge.model = trainer.model  # with its adapter: replies are drawn from what is trained
    run(trainer, watch)
    return plain(trainer.model, config)
