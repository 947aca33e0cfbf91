"""Any vision-language model that transformers loads, in process: batched, seeded vote by vote.

Sampling is a loop of our own over the key-value cache: the votes of one order share one prefill, and each
vote draws from its own seed, so that batching changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

from reward.config import JudgeConfig
from reward.encoding import Encoder, Prompt
from reward.judges.cache import expand
from reward.question import Ask, Reply, Vote, vote_of
from reward.replies import format_of

_NOT_IDENTITY = {"batch_size", "server", "answers"}  # settings that change no vote


@dataclass(frozen=True)
class Written:
    """A reply: token `ids` up to its end, their summed log-probability, the frames `shown` as Vote.shown."""

    ids: list[int]
    log_probability: float
    shown: str


class TransformersJudge:
    """A judge for `judge.type: transformers`; `judge.model` is a folder or a hub id with safetensors."""

    def __init__(self, config: JudgeConfig, loaded: tuple[Any, Any] | None = None) -> None:
        """`loaded` is a model and its processor, where they are there already: one that is being trained."""
        self.config = config
        self.model, processor = loaded or load_model(config)
        self.encoder = Encoder(processor, config)
        self.stop_ids = torch.tensor(
            sorted(_stop_ids(self.model, processor.tokenizer)), device=self.model.device
        )
        self._identity: str | None = None

    def vote(self, asks: Sequence[Ask]) -> list[Vote]:
        """One vote for each ask, in the same order. Raises ValueError for prompts too long."""
        return [
            vote_of(ask, self.read(reply.ids, ask), reply.log_probability, reply.shown)
            for ask, reply in zip(asks, self.write(asks), strict=True)
        ]

    def write(self, asks: Sequence[Ask]) -> list[Written]:
        """One reply to each ask, in the same order."""
        written: dict[int, Written] = {}
        for batch in self._batches(asks):
            replies = self._sample(
                [prompt for prompt, _ in batch], [[asks[i].seed for i in rows] for _, rows in batch]
            )
            of = [(i, prompt.shown) for prompt, rows in batch for i in rows]
            for (i, shown), (ids, log_probability) in zip(of, replies, strict=True):
                written[i] = Written(ids, log_probability, shown)
        return [written[i] for i in range(len(asks))]

    def identity(self) -> str:
        """sha256 of the weights, the processor's files and the settings that decide votes."""
        if self._identity is None:
            self._identity = identity_of(self.config)
        return self._identity

    def close(self) -> None:
        del self.model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _batches(self, asks: Sequence[Ask]) -> Iterator[list[tuple[Prompt, list[int]]]]:
        """Batches of (prompt, indices of its asks) with at most `batch_size` asks in all."""
        orders: dict[tuple[str, bool], list[int]] = {}
        for i, ask in enumerate(asks):
            orders.setdefault((ask.question.id, ask.swapped), []).append(i)
        batch: list[tuple[Prompt, list[int]]] = []
        room = self.config.batch_size
        for rows in orders.values():
            prompt = self._checked(self.encoder.prompt(asks[rows[0]]), asks[rows[0]])
            while rows:
                batch.append((prompt, rows[:room]))
                rows, room = rows[room:], room - len(batch[-1][1])
                if room == 0:
                    yield batch
                    batch, room = [], self.config.batch_size
        if batch:
            yield batch

    def _checked(self, prompt: Prompt, ask: Ask) -> Prompt:
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and len(prompt.ids) + self.config.max_new_tokens > limit:
            raise ValueError(
                f"judge.model {self.config.model!r} reads {limit} tokens; the frames and the text take "
                f"{len(prompt.ids)} and the reply up to {self.config.max_new_tokens}: "
                "lower judge.num_frames, judge.frame_size or judge.max_new_tokens, or shorten the prompt of "
                f"question {ask.question.id!r} ({len(ask.question.prompt)} characters)"
            )
        return prompt

    @torch.inference_mode()
    def _sample(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]]
    ) -> list[tuple[list[int], float]]:
        """One reply for each seed of each prompt, prompt by prompt: token ids and summed log-probability.

        Log-probabilities are the model's own, before the temperature.
        """
        uniforms_BT = self._uniforms([seed for row in seeds for seed in row])
        logits_PV, cache, mask_PL, position_ids = self._prefill(prompts)
        of_prompt = torch.tensor([p for p, row in enumerate(seeds) for _ in row], device=self.model.device)
        expand(cache, of_prompt, self.config.max_new_tokens)
        logits_BV, mask_BL = logits_PV[of_prompt], mask_PL[of_prompt]
        position_ids = position_ids[..., of_prompt, :]
        num_rows = len(of_prompt)
        replies: list[list[int]] = [[] for _ in range(num_rows)]
        log_probs = [0.0] * num_rows
        alive = list(range(num_rows))  # the replies that rows of the batch write, in order
        for step in range(self.config.max_new_tokens):
            tokens_B, chosen_B = self._draw(logits_BV, uniforms_BT[alive, step])
            going = ~torch.isin(tokens_B, self.stop_ids)
            for i, token, log_prob in zip(alive, tokens_B.tolist(), chosen_B.tolist(), strict=True):
                log_probs[i] += log_prob
                replies[i].append(token)
            rows = going.nonzero().flatten()
            if len(rows) == 0:
                break
            if len(rows) < len(alive):
                cache.batch_select_indices(rows)
                mask_BL, tokens_B, position_ids = mask_BL[rows], tokens_B[rows], position_ids[..., rows, :]
                alive = [alive[row] for row in rows.tolist()]
            mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(alive), 1)], dim=1)
            position_ids = position_ids[..., -1:] + 1
            logits_BV = self.model(
                input_ids=tokens_B[:, None],
                attention_mask=mask_BL,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
        return list(zip(replies, log_probs, strict=True))

    def _prefill(self, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, Any, torch.Tensor, torch.Tensor]:
        """Next-token logits [P, V], the cache, the mask [P, L] and the position ids [..., P, L]."""
        batch = {name: value.to(self.model.device) for name, value in self.encoder.collate(prompts).items()}
        # transformers' own rule: for the Qwen-VL line it gives text and three rotary positions [4, P, L]
        position_ids = self.model._prepare_position_ids_for_generation(batch["input_ids"], dict(batch))
        out = self.model(**batch, position_ids=position_ids, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1], out.past_key_values, batch["attention_mask"], position_ids

    def _uniforms(self, seeds: Sequence[int]) -> torch.Tensor:
        drawn = [np.random.default_rng(seed).random(self.config.max_new_tokens) for seed in seeds]
        return torch.from_numpy(np.stack(drawn)).to(self.model.device)

    def _draw(self, logits_BV: torch.Tensor, uniforms_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Next tokens by inverse CDF of one uniform a row, and their log-probabilities."""
        log_probs_BV = logits_BV.double().log_softmax(dim=-1)
        if self.config.temperature == 0:
            tokens_B = log_probs_BV.argmax(dim=-1)
        else:
            cdf_BV = (log_probs_BV / self.config.temperature).softmax(dim=-1).cumsum(dim=-1)
            tokens_B = (cdf_BV <= (uniforms_B * cdf_BV[:, -1])[:, None]).sum(dim=-1)
        return tokens_B, log_probs_BV.gather(1, tokens_B[:, None])[:, 0]

    def read(self, ids: list[int], ask: Ask) -> Reply:
        """What a written reply says."""
        if ids[-1] not in self.stop_ids.tolist():
            return Reply(None, self.encoder.decode(ids), "truncated")
        return format_of(self.config).parse(self.encoder.decode(ids[:-1]), ask.question.dimensions)


def check_model(config: JudgeConfig) -> None:
    """Raises ValueError for what load_model could not load, as far as config and processor tell."""
    assert config.model is not None, "JudgeConfig requires a model for type transformers"
    name, trust = os.path.expanduser(config.model), config.trust_remote_code
    try:
        found = AutoConfig.from_pretrained(name, trust_remote_code=trust)
        remote = trust and "AutoModelForImageTextToText" in getattr(found, "auto_map", {})
        if not remote and type(found) not in AutoModelForImageTextToText._model_mapping:
            raise ValueError(f"a {type(found).__name__} has no vision that transformers knows")
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust)
        if getattr(processor, "image_processor", None) is None:
            raise ValueError("it has no image processor")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"judge.model: cannot load {config.model!r} as a vision-language model with safetensors, choose "
            f"one that takes images and text: {error}"
        ) from error


def load_model(config: JudgeConfig, dtype: str | None = None) -> tuple[Any, Any]:
    """The model (in eval mode, on the accelerator if there is one) and its processor.

    Safetensors only. Raises ValueError for anything that is no vision-language model folder or hub id.
    """
    assert config.model is not None, "JudgeConfig requires a model for types with weights"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = dtype or config.dtype
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    if config.model.startswith((".", "/", "~")) and not Path(config.model).expanduser().is_dir():
        raise ValueError(f"judge.model: no folder {config.model!r}; correct the path or use a hub id")
    name = os.path.expanduser(config.model)
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            name,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
        )
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=config.trust_remote_code)
        if hasattr(processor, "image_processor"):
            # the two image backends of transformers differ by up to 0.008; this one exists everywhere
            processor.image_processor = AutoImageProcessor.from_pretrained(
                name, trust_remote_code=config.trust_remote_code, backend="pil"
            )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"judge.model: cannot load {config.model!r} as a vision-language model with safetensors: {error}"
        ) from error
    model.eval()
    model.to(torch.device(device))
    return model, processor


def identity_of(config: JudgeConfig) -> str:
    """sha256 of the settings that decide votes and of the files of `judge.model`."""
    settings = config.model_dump(mode="json", exclude={*_NOT_IDENTITY, "model"})
    if settings["scorer"] is None:
        del settings["scorer"]  # as before there were scorers
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in _model_files(config):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _stop_ids(model: Any, tokenizer: Any) -> set[int]:
    eos = getattr(model.generation_config, "eos_token_id", None)
    found = {eos} if isinstance(eos, int) else set(eos or ())
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    if not found:
        raise ValueError("judge.model names no end-of-text token; set eos_token in its tokenizer_config.json")
    return found


def _model_files(config: JudgeConfig) -> list[Path]:
    """The files that decide a model's replies, sorted by name."""
    from transformers.utils import cached_file

    assert config.model is not None
    folder = Path(config.model).expanduser()
    if not folder.is_dir():
        found = cached_file(config.model, "config.json")
        assert found is not None, "a loaded model has a config"
        folder = Path(found).parent
    kept = (".safetensors", ".json", ".jinja", ".txt", ".model", ".py")
    return sorted(path for path in folder.iterdir() if path.suffix in kept)
