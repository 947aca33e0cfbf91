"""Which weights learn and which stand still: policy and reference, adapters and checkpoints."""

from __future__ import annotations

import contextlib
import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from generator.attention import use_sparse_causal
from generator.checkpoint import canonicalise_safetensors
from generator.config import GeneratorConfig, LoraConfig
from generator.sharding import Sharding, part_like, shard, whole

if TYPE_CHECKING:
    from diffusers import ModelMixin

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LORA_FILE = "pytorch_lora_weights.safetensors"
# One file an expert: diffusers knows no file with both, and a folder's plain load takes the first alone.
LORA_FILES = {"transformer": LORA_FILE, "transformer_2": "pytorch_lora_weights_2.safetensors"}


class PolicyWeights:
    """The trained half of a `VideoModel`."""

    pipe: Any
    config: GeneratorConfig
    device: torch.device
    _reference: torch.nn.ModuleList | None = None
    _reference_adapter: str | None = None
    _trains_lora = False
    experts_seen: set[int]  # numbers of those that have predicted with gradients in this step
    _plain_types: tuple[type[ModelMixin], ...] = ()  # of sharded transformers, whose classes FSDP replaces

    @property
    def experts(self) -> tuple[str, ...]:
        """The pipeline's denoisers by name; several where each has noise levels of its own (Wan 2.2)."""
        return ("transformer",)

    @property
    def transformers(self) -> list[ModelMixin]:
        return [getattr(self.pipe, name) for name in self.experts]

    @property
    def transformer(self) -> ModelMixin:
        return self.pipe.transformer

    def eval(self) -> None:
        """Ends training: no dropout from here on."""
        for transformer in self.transformers:
            transformer.eval()

    @property
    def is_sharded(self) -> bool:
        return bool(self._plain_types)

    def leave_device(self) -> None:
        """Moves the transformers to the CPU, from where `shard` takes a block at a time."""
        for transformer in self.transformers:
            transformer.to("cpu")

    def shard(self, sharding: Sharding) -> list[torch.nn.Parameter]:
        """Splits policy and reference over all ranks, after `prepare_training`; returns what is trained."""
        self._plain_types = tuple(type(transformer) for transformer in self.transformers)
        mesh = sharding.mesh(self.device)
        for transformer in self.transformers:
            shard(transformer, mesh, self.device, reshard=sharding.reshard_after_forward)
        for transformer in self._reference or ():
            shard(transformer, mesh, self.device, reshard=True)  # no backward would end its gathering
        return [p for t in self.transformers for p in t.parameters() if p.requires_grad]

    @contextlib.contextmanager
    def _as_reference(self) -> Iterator[list[ModelMixin]]:
        if not self._trains_lora:
            assert self._reference is not None, "prepare_training was not called"
            yield list(self._reference)
            return
        try:
            for transformer in self.transformers:
                if self._reference_adapter is None:
                    transformer.disable_adapters()
                else:
                    transformer.set_adapter(self._reference_adapter)
            yield self.transformers
        finally:
            for transformer in self.transformers:
                if self._reference_adapter is None:
                    transformer.enable_adapters()
                transformer.set_adapter("policy")

    def load_checkpoint(self, folder: Path) -> None:
        """Puts a round's committed checkpoint (LoRA files or transformer folders) into the pipeline."""
        if all((folder / LORA_FILES[name]).is_file() for name in self.experts):
            self._load_lora(folder, "policy")
            for transformer in self.transformers:
                transformer.set_adapter("policy")
        elif all((folder / name).is_dir() for name in self.experts):
            for name in self.experts:
                base = getattr(self.pipe, name)
                loaded = type(base).from_pretrained(
                    folder / name, dtype=DTYPES[self.config.dtype], use_safetensors=True
                )
                setattr(self.pipe, name, self._made_ready(loaded.to(base.device)))
        else:
            files = " and ".join(LORA_FILES[name] for name in self.experts)
            folders = " and ".join(f"{name}/" for name in self.experts)
            raise ValueError(f"{folder} holds neither {files} nor {folders}: not a generator checkpoint")

    def _made_ready(self, transformer: ModelMixin) -> ModelMixin:
        """A freshly loaded denoiser as it is used here: frozen, with the configured attention."""
        if self.config.attention != "dense":
            use_sparse_causal(transformer, self.config.attention)
        return transformer.eval().requires_grad_(False)

    def _load_lora(self, folder: Path, adapter: str) -> None:
        for name in self.experts:
            self._check_fits(folder / LORA_FILES[name], getattr(self.pipe, name))
            which = {"load_into_transformer_2": True} if name == "transformer_2" else {}
            self.pipe.load_lora_weights(
                str(folder), weight_name=LORA_FILES[name], adapter_name=adapter, **which
            )

    def _check_fits(self, file: Path, transformer: ModelMixin) -> None:
        """Raises ValueError for a LoRA of another base: of other layers it would silently load a part."""
        with safe_open(file, "pt") as stored:
            shapes = {n: tuple(stored.get_slice(n).get_shape()) for n in stored.keys()}  # noqa: SIM118
        layers = dict(transformer.named_modules())
        for name, shape in shapes.items():
            path, _, kind = name.removeprefix("transformer.").removesuffix(".weight").rpartition(".")
            layer = layers.get(path)
            wanted = getattr(getattr(layer, "base_layer", layer), "weight", None)
            fits = wanted is not None and (
                shape[1] == wanted.shape[1] if kind == "lora_A" else shape[0] == wanted.shape[0]
            )
            if not fits:
                has = "no such layer" if wanted is None else f"a layer of {list(wanted.shape)}"
                raise ValueError(
                    f"{file}: a LoRA for another base than generator.model {self.config.model}: {name} is "
                    f"{list(shape)}, and there the {type(transformer).__name__} has {has}; give the base "
                    "that the LoRA was trained on"
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
            base = copy.deepcopy(self.transformers) if reference == "base" else None
            if parent is not None:
                self.load_checkpoint(parent)
            kept = base if base is not None else copy.deepcopy(self.transformers)
            self._reference = torch.nn.ModuleList(kept).requires_grad_(False)
            for transformer in self.transformers:
                transformer.requires_grad_(True).train()
            return [p for transformer in self.transformers for p in transformer.parameters()]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._add_lora(lora, parent, reference)
        policy = self._adapter("policy")
        if not policy:
            raise ValueError(
                f"update.lora.target_modules: none of {list(lora.target_modules)} is in "
                f"{type(self.transformer).__name__}"
            )
        for transformer in self.transformers:
            transformer.requires_grad_(False)
        for p in policy:
            p.requires_grad_(True)
        return policy

    def check_lora_targets(self, lora: LoraConfig) -> None:
        """Raises ValueError naming target modules that the transformer does not have."""
        names = [n for n, _ in self.transformer.named_modules()]
        missing = [t for t in lora.target_modules if not any(n == t or n.endswith("." + t) for n in names)]
        if missing:
            raise ValueError(
                f"update.lora.target_modules: {', '.join(missing)} not found in "
                f"{type(self.transformer).__name__}; name modules of it, such as to_q"
            )

    def _add_lora(self, lora: LoraConfig, parent: Path | None, reference: str) -> None:
        if parent is None:
            self._add_new_lora(lora, reference)
        else:
            self.load_checkpoint(parent)
            if reference != "base":
                self._load_lora(parent, "reference")
                self._reference_adapter = "reference"
        for transformer in self.transformers:
            transformer.set_adapter("policy")

    def _add_new_lora(self, lora: LoraConfig, reference: str) -> None:
        from peft import LoraConfig as PeftLoraConfig

        self.check_lora_targets(lora)
        config = PeftLoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules=list(lora.target_modules),
            init_lora_weights=True,
        )
        # it starts as the base, and moves if it is an average of the policy
        self._reference_adapter = "reference" if reference == "ema" else None
        for transformer in self.transformers:
            transformer.add_adapter(config, adapter_name="policy")
            if self._reference_adapter is not None:
                transformer.add_adapter(config, adapter_name=self._reference_adapter)
        if self._reference_adapter is not None:
            for mine, its in zip(self._adapter("policy"), self._adapter("reference"), strict=True):
                its.data.copy_(mine.data)

    def _adapter(self, name: str) -> list[torch.nn.Parameter]:
        return [p for t in self.transformers for n, p in t.named_parameters() if f".{name}." in n]

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
        """The policy's own weights by name (adapter or full); sharded ones are whole on rank 0 alone."""
        return {
            _prefix(expert) + n: t
            for expert, transformer in zip(self.experts, self.transformers, strict=True)
            for n, t in self._own_state(transformer).items()
        }

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        left = dict(state)
        for expert, transformer in zip(reversed(self.experts), reversed(self.transformers), strict=True):
            prefix = _prefix(expert)
            mine = {n.removeprefix(prefix): left.pop(n) for n in list(left) if n.startswith(prefix)}
            own = transformer.state_dict()
            parts = {n: part_like(t, own[n]) if n in own else t for n, t in mine.items()}
            _, unexpected = transformer.load_state_dict(parts, strict=False)
            assert not unexpected, f"not weights of this policy: {unexpected[:3]}"

    def save_checkpoint(self, folder: Path, writes: bool = True) -> None:
        """Writes LoRA files or transformer folders for plain diffusers. Same weights, same bytes.

        Every rank calls it, since all give their parts; one `writes`.
        """
        if writes and folder.exists():
            shutil.rmtree(folder)
        for number, (name, transformer) in enumerate(zip(self.experts, self.transformers, strict=True)):
            state = self._own_state(transformer)
            if not writes:
                continue
            folder.mkdir(parents=True, exist_ok=True)
            if self._trains_lora:
                self._save_lora(transformer, state, folder, LORA_FILES[name])
            else:
                if self.is_sharded:
                    with torch.device("meta"):
                        transformer = self._plain_types[number].from_config(transformer.config)
                    transformer.load_state_dict(state, assign=True)
                transformer.save_pretrained(folder / name, safe_serialization=True)

    def _own_state(self, transformer: ModelMixin) -> dict[str, Tensor]:
        """See `trainable_state`; of one transformer."""
        state = transformer.state_dict()
        return {n: whole(t) for n, t in state.items() if not self._trains_lora or ".policy." in n}

    def _save_lora(self, transformer: ModelMixin, state: dict[str, Tensor], folder: Path, file: str) -> None:
        from peft.utils import get_peft_model_state_dict

        layers = get_peft_model_state_dict(transformer, state_dict=state, adapter_name="policy")
        # Without the metadata, loaders silently take alpha = rank. Sorted, as a set's order is no constant.
        settings = transformer.peft_config["policy"].to_dict()
        metadata = {k: sorted(v) if isinstance(v, set) else v for k, v in settings.items()}
        type(self.pipe).save_lora_weights(
            str(folder),
            transformer_lora_layers=layers,
            weight_name=file,
            transformer_lora_adapter_metadata=metadata,
        )
        canonicalise_safetensors(folder / file)


def _prefix(expert: str) -> str:
    """What tells the experts' weights apart in one dictionary; the first, often the only one, has none."""
    return "" if expert == "transformer" else f"{expert}."
