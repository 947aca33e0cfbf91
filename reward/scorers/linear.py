"""A point-wise reward model: a vision-language model with a linear head on hidden states.

On disk it is a folder that plain transformers loads, with reward_head.json and reward_head.safetensors in it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from reward.config import JudgeConfig
from reward.judges.transformers import load_model
from reward.question import ClipReader, Question
from reward.scorers.encoding import ClipEncoder
from reward.scorers.head import (
    HEAD_FILE,
    WEIGHTS_FILE,
    HeadFile,
    find_head,
    make_mix,
    with_instructions,
    write_head,
)

_FIRST_THRESHOLD = 1.0  # κ of a head that learned nothing yet: equal clips tie with probability 0.46


class RewardModel(nn.Module):
    """transformers' `backbone`; `weight` [O, H] and `log_threshold` [O] (log κ) are the head in float32."""

    accepts_loss_kwargs = False  # so that Trainer divides the loss by the number of micro-batches

    def __init__(
        self, backbone: Any, weight: torch.Tensor, log_threshold: torch.Tensor, sequential: bool
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.weight = nn.Parameter(weight.float().to(backbone.device))
        self.log_threshold = nn.Parameter(log_threshold.float().to(backbone.device))
        self.sequential = sequential

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Raw outputs [B, O] of a batch of ClipEncoder.batch, float32."""
        inputs = dict(inputs)
        places = inputs.pop("places")
        if self.sequential:
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        model = self.backbone.get_base_model() if hasattr(self.backbone, "peft_config") else self.backbone
        hidden_BLH = model.base_model(**inputs, use_cache=False).last_hidden_state
        rows = torch.arange(len(places), device=places.device)[:, None]
        return (hidden_BLH[rows, places].float() * self.weight).sum(dim=-1)  # [B, O or 1, H] · [O, H]


class LinearScorer:
    """Scores clips with a RewardModel. One clip a forward, so that no score depends on what else is asked."""

    def __init__(self, config: JudgeConfig, dtype: str | None = None) -> None:
        """Raises ValueError for a folder without head, with another model's head, or without vision."""
        self.config = config
        self.head, self.model, self.processor = load_scorer(config, dtype)
        self.encoder = ClipEncoder(self.processor, config, self.head)
        self.mix = make_mix(
            config.dimensions, self.head.outputs, config.scoring, self.head.mean, self.head.std
        )
        self._limit = getattr(self.model.backbone.config.get_text_config(), "max_position_embeddings", None)

    @property
    def thresholds(self) -> np.ndarray:
        """κ of every dimension [D], nats."""
        fixed = self.config.scoring.tie_threshold
        if fixed is not None:
            return np.full(len(self.mix.dimensions), fixed)
        return self.mix.shares_DO @ self.model.log_threshold.detach().exp().double().cpu().numpy()

    @torch.inference_mode()
    def raw(self, reader: ClipReader, question: Question) -> np.ndarray:
        """Raw outputs [O] of one clip of `question`, float64. Raises ValueError for a prompt too long."""
        prompt = self.encoder.clip(reader, question, self.head.instructions)
        if self._limit is not None and len(prompt.ids) > self._limit:
            raise ValueError(
                f"judge.model {self.config.model!r} reads {self._limit} tokens; the frames of one clip and "
                f"the text take {len(prompt.ids)}: lower judge.num_frames or judge.frame_size"
            )
        device = self.model.weight.device
        batch = {name: value.to(device) for name, value in self.encoder.batch([prompt]).items()}
        raw = self.model(batch)[0].double().cpu().numpy()
        if not np.isfinite(raw).all():
            raise ValueError(
                f"judge.model {self.config.model!r} scores a clip {raw.tolist()}; set judge.dtype to "
                "float32, or train the head again at a lower learning rate"
            )
        return raw

    def close(self) -> None:
        del self.model


def load_scorer(config: JudgeConfig, dtype: str | None = None) -> tuple[HeadFile, RewardModel, Any]:
    """Head, model (in eval mode) and processor. Safetensors only. Raises ValueError for what is no scorer."""
    head, weights = find_head(config)
    backbone, processor = load_model(config, dtype)
    hidden = backbone.config.get_text_config().hidden_size
    if backbone.base_model is backbone:
        raise ValueError(
            f"judge.model {config.model!r}: {type(backbone).__name__} has no hidden states to read"
        )
    if weights is None:
        num = len(head.outputs)
        tensors = {
            "weight": torch.zeros(num, hidden),
            "threshold": torch.full((num,), _FIRST_THRESHOLD),
        }
    else:
        tensors = load_file(weights)
        _check(tensors, head, hidden, weights)
    head = with_instructions(head, config.scoring.instructions)
    model = RewardModel(
        backbone, tensors["weight"], tensors["threshold"].log(), head.positions == "sequential"
    )
    return head, model.eval(), processor


def save_scorer(head: HeadFile, model: RewardModel, processor: Any, out: Path) -> None:
    """Write the folder that `load_scorer` reads. The same weights give the same bytes."""
    model.backbone.save_pretrained(out)
    processor.save_pretrained(out)
    write_head(head, out / HEAD_FILE)
    tensors = {"weight": model.weight, "threshold": model.log_threshold.exp()}
    save_file(
        {name: value.detach().float().cpu().contiguous() for name, value in tensors.items()},
        out / WEIGHTS_FILE,
    )


def _check(tensors: dict[str, torch.Tensor], head: HeadFile, hidden: int, file: Path) -> None:
    num = len(head.outputs)
    for name, shape in (("weight", (num, hidden)), ("threshold", (num,))):
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shape:
            raise ValueError(f"{file}: {name} is {found}, not {shape}; the head belongs to another model")
    values = [*tensors["weight"].flatten().tolist(), *tensors["threshold"].log().tolist()]
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"{file}: a weight is not finite, or a threshold not above 0; train the head again")
