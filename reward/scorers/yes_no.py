"""Scores by a checklist: yes/no questions about one clip, weighed and added up.

That is how VisionReward scores (arXiv 2412.21059); any vision-language model can answer. No reply
is written: P(yes) is read off the logits of the next token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reward.config import JudgeConfig
from reward.judges.transformers import load_model
from reward.question import ClipReader, Question
from reward.scorers.checklist import read_checklist
from reward.scorers.encoding import ClipEncoder
from reward.scorers.head import HeadFile, make_mix


@dataclass(frozen=True)
class Words:
    """Token ids of the answers, capitals and leading spaces included."""

    yes: list[int]
    no: list[int]

    def p_yes(self, logits_BV: torch.Tensor) -> torch.Tensor:
        """P(yes) among yes and no [B], float64, from next-token logits."""
        logits_BV = logits_BV.double()
        yes, no = (logits_BV[:, ids].logsumexp(dim=1) for ids in (self.yes, self.no))
        return torch.sigmoid(yes - no)


class ChecklistScorer:
    """Scores clips by a checklist. The questions of one clip share batches of judge.batch_size, no others."""

    def __init__(self, config: JudgeConfig) -> None:
        """Raises ValueError for a checklist that cannot be read, and a model without vision or yes and no."""
        self.config = config
        self.checklist = read_checklist(config)
        outputs = self.checklist.outputs
        self.mix = make_mix(config.dimensions, outputs, config.scoring)
        self.model, processor = load_model(config)
        self.encoder = ClipEncoder(processor, config, HeadFile(outputs=outputs))
        self.words = find_words(processor.tokenizer, config.model)
        self._limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def thresholds(self) -> np.ndarray:
        """κ of every dimension [D], nats: published weights were fitted without ties."""
        return np.full(len(self.mix.dimensions), self.config.scoring.tie_threshold or 0.0)

    def raw(self, reader: ClipReader, question: Question) -> np.ndarray:
        """Outputs [O] of one clip of `question`, float64. Raises ValueError for a prompt too long."""
        yes_Q = self.p_yes(reader, question)
        answers_Q = np.where(yes_Q > 0.5, 1.0, -1.0) if self.config.scoring.hard_answers else 2 * yes_Q - 1
        return self.checklist.weights @ answers_Q

    @torch.inference_mode()
    def p_yes(self, reader: ClipReader, question: Question) -> np.ndarray:
        """P(yes) of every question of the checklist [Q], float64."""
        asked = [self.checklist.form.replace("{question}", q.question) for q in self.checklist.questions]
        found: list[float] = []
        for start in range(0, len(asked), self.config.batch_size):
            prompts = [
                self.encoder.clip(reader, question, words)
                for words in asked[start : start + self.config.batch_size]
            ]
            longest = max(len(prompt.ids) for prompt in prompts)
            if self._limit is not None and longest > self._limit:
                raise ValueError(
                    f"judge.model {self.config.model!r} reads {self._limit} tokens; the frames of one clip "
                    f"and a question take {longest}: lower judge.num_frames or judge.frame_size"
                )
            batch = {
                name: value.to(self.model.device) for name, value in self.encoder.collate(prompts).items()
            }
            logits_BV = self.model(**batch, use_cache=False, logits_to_keep=1).logits[:, -1]
            found += self.words.p_yes(logits_BV).tolist()
        if not all(math.isfinite(value) for value in found):
            raise ValueError(
                f"judge.model {self.config.model!r} gives logits that are not finite; set "
                "judge.dtype to float32"
            )
        return np.array(found)

    def close(self) -> None:
        del self.model


def find_words(tokenizer: Any, model: str | None) -> Words:
    """The single tokens that say yes and no. Raises ValueError for a tokenizer without one of them."""
    found: dict[str, list[int]] = {}
    for word in ("yes", "no"):
        ids = set()
        for form in (word, word.capitalize(), f" {word}", f" {word.capitalize()}"):
            tokens = tokenizer(form, add_special_tokens=False)["input_ids"]
            if len(tokens) == 1 and tokens[0] != tokenizer.unk_token_id:
                ids.add(tokens[0])
        if not ids:
            raise ValueError(
                f"judge.model {model!r}: its tokenizer has no single token for {word!r}, so a checklist "
                "cannot read its answer; choose another model"
            )
        found[word] = sorted(ids)
    return Words(found["yes"], found["no"])
