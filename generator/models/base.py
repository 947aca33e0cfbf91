"""The contract between retake and a model family, and what all families share.

A `VideoModel` wraps a diffusers pipeline: it moves pixels to normalised latents and back, embeds
prompts, predicts, and knows which weights are the policy and which the frozen reference.
"""

from __future__ import annotations

import contextlib
import copy
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from generator.checkpoint import canonicalise_safetensors
from generator.condition import Condition
from generator.config import GeneratorConfig, LoraConfig
from generator.parametrisation import FlowMatching

if TYPE_CHECKING:
    from diffusers import ModelMixin

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LORA_FILE = "pytorch_lora_weights.safetensors"


class VideoModel(ABC):
    """One generator.

    Videos are float [B, 3, T, H, W] in [−1, 1], latents float32 [B, C, T', H', W'] normalised to about unit
    variance, `sigma` is float [B] in [0, 1], a `Condition` has one row a clip.
    """

    parametrisation = FlowMatching

    def __init__(self, pipe: Any, config: GeneratorConfig, device: torch.device) -> None:
        self.pipe = pipe.to(device)
        self.config = config
        self.device = device
        for part in (pipe.vae, pipe.text_encoder, pipe.transformer):
            part.eval().requires_grad_(False)
        self._reference: ModelMixin | None = None
        self._reference_adapter: str | None = None
        self._trains_lora = False

    # What a family fills in -----------------------------------------------------------------

    @classmethod
    @abstractmethod
    def load(cls, config: GeneratorConfig, device: torch.device) -> VideoModel:
        """Loads the pipeline from safetensors, no remote code."""

    @abstractmethod
    def encode(self, video: Tensor) -> Tensor:
        """Normalised latents of a video (the posterior's mode, so that equal clips give equal latents)."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """The video of normalised latents, clamped to [−1, 1]."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        """What the transformer needs to know of each prompt."""

    @abstractmethod
    def forward(
        self, transformer: ModelMixin, x_sigma: Tensor, sigma: Tensor, condition: Condition
    ) -> Tensor:
        """The network's raw prediction, the shape of `x_sigma`."""

    @abstractmethod
    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, T', H', W') of a clip. Raises ValueError for sizes that the autoencoder cannot take."""

    @abstractmethod
    def latent_segments(self, num_frames: int, frames_per_segment: int) -> list[int]:
        """The segment index of each latent frame, length T'."""

    # What all families share ----------------------------------------------------------------

    @property
    def transformer(self) -> ModelMixin:
        return self.pipe.transformer

    @property
    def scheduler(self) -> Any:
        return self.pipe.scheduler

    @property
    def shift(self) -> float:
        return float(self.scheduler.config.get("shift") or self.scheduler.config.get("flow_shift") or 1.0)

    def predict(self, x_sigma: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The policy's prediction."""
        return self.forward(self.transformer, x_sigma, sigma, condition)

    def predict_reference(self, x_sigma: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The frozen reference's prediction, no graph. Call it before `predict`: it switches adapters."""
        with torch.no_grad(), self._as_reference() as transformer:
            return self.forward(transformer, x_sigma, sigma, condition)

    @contextlib.contextmanager
    def _as_reference(self) -> Iterator[ModelMixin]:
        if not self._trains_lora:
            assert self._reference is not None, "prepare_training was not called"
            yield self._reference
            return
        try:
            if self._reference_adapter is None:
                self.transformer.disable_adapters()
            else:
                self.transformer.set_adapter(self._reference_adapter)
            yield self.transformer
        finally:
            if self._reference_adapter is None:
                self.transformer.enable_adapters()
            self.transformer.set_adapter("policy")

    def load_checkpoint(self, folder: Path) -> None:
        """Puts a round's committed checkpoint (a LoRA or a transformer folder) into the pipeline."""
        if (folder / LORA_FILE).is_file():
            self.pipe.load_lora_weights(str(folder), adapter_name="policy")
            self.transformer.set_adapter("policy")
        elif (folder / "transformer").is_dir():
            kind = type(self.transformer)
            loaded = kind.from_pretrained(
                folder / "transformer", dtype=DTYPES[self.config.dtype], use_safetensors=True
            )
            self.pipe.transformer = loaded.to(self.device).eval().requires_grad_(False)
        else:
            raise ValueError(
                f"{folder} holds neither {LORA_FILE} nor transformer/: not a generator checkpoint"
            )

    def prepare_training(
        self, lora: LoraConfig | None, parent: Path | None, reference: str, seed: int
    ) -> list[torch.nn.Parameter]:
        """Sets up policy and reference; returns the parameters to train. `seed` draws a new adapter.

        The policy starts from the parent's weights. With LoRA nothing is ever merged: the new adapter
        continues the parent's and stays relative to the base model.
        """
        self._trains_lora = lora is not None
        if lora is None:
            base = copy.deepcopy(self.transformer) if reference == "base" else None
            if parent is not None:
                self.load_checkpoint(parent)
            self._reference = base if base is not None else copy.deepcopy(self.transformer)
            self._reference.requires_grad_(False)
            self.transformer.requires_grad_(True).train()
            return list(self.transformer.parameters())
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._add_lora(lora, parent, reference)
        policy = self._adapter("policy")
        if not policy:
            raise ValueError(
                f"update.lora.target_modules: none of {list(lora.target_modules)} is in "
                f"{type(self.transformer).__name__}"
            )
        for p in self.transformer.parameters():
            p.requires_grad_(False)
        for p in policy:
            p.requires_grad_(True)
        return policy

    def _add_lora(self, lora: LoraConfig, parent: Path | None, reference: str) -> None:
        from peft import LoraConfig as PeftLoraConfig

        if parent is None:
            names = [n for n, _ in self.transformer.named_modules()]
            missing = [
                t for t in lora.target_modules if not any(n == t or n.endswith("." + t) for n in names)
            ]
            if missing:
                raise ValueError(
                    f"update.lora.target_modules: {', '.join(missing)} not found in "
                    f"{type(self.transformer).__name__}; name modules of it, such as to_q"
                )
            config = PeftLoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,
                target_modules=list(lora.target_modules),
                init_lora_weights=True,
            )
            self.transformer.add_adapter(config, adapter_name="policy")
            self._reference_adapter = None
            if reference == "ema":  # it starts as the base, and moves
                self.transformer.add_adapter(config, adapter_name="reference")
                self._reference_adapter = "reference"
                for mine, its in zip(self._adapter("policy"), self._adapter("reference"), strict=True):
                    its.data.copy_(mine.data)
                self.transformer.set_adapter("policy")
            return
        self.load_checkpoint(parent)
        if reference != "base":
            self.pipe.load_lora_weights(str(parent), adapter_name="reference")
            self._reference_adapter = "reference"
        self.transformer.set_adapter("policy")

    def _adapter(self, name: str) -> list[torch.nn.Parameter]:
        return [p for n, p in self.transformer.named_parameters() if f".{name}." in n]

    def reference_parameters(self) -> list[torch.nn.Parameter]:
        """The reference's weights, in the order of the trained ones. Needs a reference of its own weights."""
        if not self._trains_lora:
            assert self._reference is not None, "prepare_training was not called"
            return list(self._reference.parameters())
        assert self._reference_adapter is not None, "the reference is the base itself"
        return self._adapter(self._reference_adapter)

    def reference_state(self) -> list[Tensor]:
        """The weights that tell this reference from others of the same base; none where it is the base."""
        if self._trains_lora and self._reference_adapter is None:
            return []
        return [p.detach() for p in self.reference_parameters()]

    def trainable_state(self) -> dict[str, Tensor]:
        """The policy's own weights by name (adapter or full)."""
        state = self.transformer.state_dict()
        return {n: t for n, t in state.items() if not self._trains_lora or ".policy." in n}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        _, unexpected = self.transformer.load_state_dict(state, strict=False)
        assert not unexpected, f"not weights of this policy: {unexpected[:3]}"

    def save_checkpoint(self, folder: Path) -> None:
        """Writes a LoRA file or a transformer folder for plain diffusers. Same weights, same bytes."""
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        if not self._trains_lora:
            self.transformer.save_pretrained(folder / "transformer", safe_serialization=True)
            return
        from peft.utils import get_peft_model_state_dict

        layers = get_peft_model_state_dict(self.transformer, adapter_name="policy")
        # Without the metadata, loaders silently take alpha = rank. Sorted, as a set's order is no constant.
        settings = self.transformer.peft_config["policy"].to_dict()
        metadata = {k: sorted(v) if isinstance(v, set) else v for k, v in settings.items()}
        type(self.pipe).save_lora_weights(
            str(folder), transformer_lora_layers=layers, transformer_lora_adapter_metadata=metadata
        )
        canonicalise_safetensors(folder / LORA_FILE)


def load_model(config: GeneratorConfig, checkpoint: Path | None = None, device: str = "cpu") -> VideoModel:
    """The generator of a config, with a round's checkpoint if one is given."""
    from generator.models.wan import WanModel

    families: dict[str, type[VideoModel]] = {"wan": WanModel}
    model = families[config.family].load(config, torch.device(device))
    if checkpoint is not None:
        model.load_checkpoint(checkpoint)
    return model
