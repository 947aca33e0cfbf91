"""VideoReward (arXiv 2501.13918) as its authors publish it, converted once to a scorer's folder.

    python -m reward.scorers.videoreward VideoReward VideoAlign models/videoreward

VideoReward is the folder of the weights (hub id KwaiVGI/VideoReward), VideoAlign the authors' repository,
whose prompt the model was trained with. The weights are a pickle: here, and nowhere else, one is read, by
torch's reader that builds nothing but tensors. What it writes are safetensors.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from reward.scorers.head import HeadFile
from reward.scorers.linear import RewardModel, save_scorer

OUTPUTS = ("VQ", "MQ", "TA")
TOKENS = tuple(f"<|{name}_reward|>" for name in OUTPUTS)
_THETA = 5.0  # of Bradley-Terry with ties, in the authors' training
_LEAST_TOKENS = 128  # their video reader enlarges frames until each has as many tokens
_TEMPLATES = {"detailed_special": "DETAILED_PROMPT_WITH_SPECIAL_TOKEN"}

Tensors = dict[str, torch.Tensor]


def convert(weights: Path, code: Path, out: Path, base: str | None = None) -> None:
    """Write the scorer of VideoReward's folder `weights` to `out`.

    `code` is the authors' repository, or its prompt_template.py, which is read and not run. `base` is the
    Qwen2-VL folder or hub id (none = the one that the checkpoint names): its config and processor are needed,
    its own weights only for a checkpoint that holds nothing but adapters.

    The authors' forward gives the language model no position ids, so patches and words share one sequential
    position; a head converted here says so. Raises ValueError for a folder of another layout.
    """
    settings = _settings(weights / "model_config.json")
    data, lora = settings["data_config"], settings["peft_lora_config"]
    checkpoint = _latest(weights)
    base = base or settings["model_config"]["model_name_or_path"]
    instructions = read_prompt(code, data["prompt_template_type"])
    scale = lora["lora_alpha"] / (math.sqrt(lora["lora_r"]) if lora.get("use_rslora") else lora["lora_r"])
    tensors, whole = read_tensors(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "tokenizer")
    model = _empty(base, tensors) if whole else _based(base, len(tokenizer))
    # of a whole checkpoint nothing may be missing, or random weights would fill the gap
    head = _load(model, merged(tensors, {} if whole else dict(model.state_dict()), scale), checkpoint)
    processor = AutoProcessor.from_pretrained(base)
    processor.tokenizer = tokenizer
    videos = processor.video_processor
    side = videos.patch_size * videos.merge_size
    videos.size = {"shortest_edge": _LEAST_TOKENS * side**2, "longest_edge": data["max_frame_pixels"]}
    videos.cap_pixels_per_frame = False  # the limit for each frame is all that there is
    norm = settings.get("inference_config") or {}
    file = HeadFile(
        outputs=OUTPUTS,
        tokens=TOKENS,
        mean=tuple(norm.get(f"{name}_mean", 0.0) for name in OUTPUTS),
        std=tuple(norm.get(f"{name}_std", 1.0) for name in OUTPUTS),
        instructions=instructions,
        frames="video",
        positions="sequential",
        fps=data["fps"],
    )
    threshold = torch.full((len(OUTPUTS),), math.log(_THETA))
    scorer = RewardModel(model, head.expand(len(OUTPUTS), -1), threshold.log(), sequential=True)
    out.mkdir(parents=True, exist_ok=True)
    save_scorer(file, scorer, processor, out)


def read_tensors(checkpoint: Path) -> tuple[Tensors, bool]:
    """All tensors of a checkpoint folder, and whether they are a whole model.

    If not, they are adapters and what was trained beside them. Raises ValueError for a folder with neither.
    """
    for names in (("model",), ("adapter_model", "non_lora_state_dict")):
        files = [_one(checkpoint, name) for name in names]
        if all(files):
            found = {name: tensor for file in files if file for name, tensor in _read(file).items()}
            return found, names == ("model",)
    raise ValueError(
        f"{checkpoint}: holds neither model.pth nor adapter_model.safetensors with non_lora_state_dict.pth; "
        "download VideoReward's weights again"
    )


def merged(tensors: Mapping[str, torch.Tensor], base: Tensors, scale: float) -> Tensors:
    """`tensors` over `base`, under transformers' names of today, with adapters added in: W + scale · B A.

    `base` is what the adapters lie on, where `tensors` does not hold it.
    """
    found, adapters = dict(base), dict[str, dict[str, torch.Tensor]]()
    for name, tensor in tensors.items():
        name = _name_today(name)
        adapter = re.fullmatch(r"(.*)\.lora_([AB])(?:\.default)?\.weight", name)
        if adapter:
            adapters.setdefault(adapter[1], {})[adapter[2]] = tensor
        else:
            found[name] = tensor
    for module, parts in adapters.items():
        weight = found[f"{module}.weight"]
        change = scale * parts["B"].float() @ parts["A"].float()
        found[f"{module}.weight"] = (weight.float() + change).to(weight.dtype)
    return found


def read_prompt(code: Path, template: str) -> str:
    """The authors' words out of prompt_template.py, which is not run, with {prompt} for the clip's prompt."""
    if template not in _TEMPLATES:
        raise ValueError(
            f"model_config.json: prompt_template_type {template!r} is not VideoReward's; only "
            f"{', '.join(_TEMPLATES)} can be converted"
        )
    file = code / "prompt_template.py" if code.is_dir() else code
    if not file.is_file():
        raise ValueError(f"{file}: no such file; give a copy of the authors' repository, KwaiVGI/VideoAlign")
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        names = (
            [t.id for t in node.targets if isinstance(t, ast.Name)] if isinstance(node, ast.Assign) else []
        )
        if _TEMPLATES[template] in names:
            assert isinstance(node, ast.Assign)
            return str(ast.literal_eval(node.value)).replace("{text_prompt}", "{prompt}")
    raise ValueError(f"{file}: defines no {_TEMPLATES[template]}; give the authors' own file")


def _settings(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        special = found["model_config"]["use_special_tokens"] and found["peft_lora_config"]["lora_enable"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: is not VideoReward's ({error!r}); give the folder that holds it") from None
    if not special:
        raise ValueError(f"{file}: only models with special reward tokens and adapters can be converted")
    return found


def _latest(weights: Path) -> Path:
    found = [path for path in weights.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    if not found:
        raise ValueError(
            f"{weights}: holds no folder checkpoint-NUMBER; download VideoReward's weights again"
        )
    return max(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def _one(folder: Path, name: str) -> Path | None:
    files = [folder / f"{name}{suffix}" for suffix in (".safetensors", ".pth")]
    return next((file for file in files if file.is_file()), None)


def _read(file: Path) -> Tensors:
    if file.suffix == ".safetensors":
        return load_file(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(
            f"{file}: holds more than tensors, or is damaged, and is not read: {error}"
        ) from None


def _name_today(name: str) -> str:
    """The checkpoint's names are PEFT's around transformers 4.45's."""
    name = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
        return f"model.language_model.{name.removeprefix('model.')}"
    return name


def _empty(base: str, tensors: Mapping[str, torch.Tensor]) -> Any:
    """A Qwen2-VL of the checkpoint's vocabulary and dtype, to be filled."""
    embedding = next(t for name, t in tensors.items() if name.endswith("embed_tokens.weight"))
    config = AutoConfig.from_pretrained(base)
    config.get_text_config().vocab_size = len(embedding)
    return AutoModelForImageTextToText.from_config(config, dtype=embedding.dtype)


def _based(base: str, num_tokens: int) -> Any:
    model = AutoModelForImageTextToText.from_pretrained(base, use_safetensors=True, dtype="auto")
    model.resize_token_embeddings(num_tokens, mean_resizing=False)
    return model


def _load(model: Any, tensors: Tensors, checkpoint: Path) -> torch.Tensor:
    """Fill the model; the head's weight [1 or O, H] is left. Raises ValueError for what does not fit."""
    head = tensors.pop("rm_head.weight", None)
    if head is None or len(head) not in (1, len(OUTPUTS)):
        raise ValueError(f"{checkpoint}: holds no rm_head of 1 or {len(OUTPUTS)} outputs")
    embedding = "model.language_model.embed_tokens.weight"
    if model.config.tie_word_embeddings and embedding in tensors:
        tensors["lm_head.weight"] = tensors[embedding]
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{checkpoint}: does not fit the base model: {error}") from None
    model.eval()
    return head


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m reward.scorers.videoreward", description=__doc__)
    parser.add_argument("weights", type=Path, help="the folder of KwaiVGI/VideoReward")
    parser.add_argument("code", type=Path, help="a copy of the repository KwaiVGI/VideoAlign")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument(
        "--base", help="folder or hub id of Qwen2-VL-2B-Instruct; left out: as the weights say"
    )
    given = parser.parse_args(arguments)
    try:
        convert(given.weights, given.code, given.out, given.base)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    print(f"written to {given.out}: give it as judge.model of configs/videoreward.yaml")


if __name__ == "__main__":
    main()
