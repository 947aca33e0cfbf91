"""The embedded judge itself: vocabulary, processor and a tiny real Qwen2.5-VL with random weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from loop.embedded import flaws, world
from reward.config import DIMENSIONS

INSTRUCTIONS = "compare"
PATCH, MERGE = 8, 4  # 4 x 4 patches of 8 x 8 pixels: one 32 x 32 frame is one visual token
IMAGE = "<|image_pad|>"
VISION = ["<|vision_start|>", "<|vision_end|>", IMAGE, "<|video_pad|>"]
SPECIAL = ["<unk>", "<|pad|>", "<|im_end|>", "<|im_start|>", *VISION]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}<|im_start|>{% endif %}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message.role == 'assistant' %}<|im_end|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def build_vocabulary() -> list[str]:
    """Every token of the judge's small language."""
    words = ["<reasoning>", "</reasoning>", "<answer>", "</answer>"]
    words += ["first", "second", "tie", "first:", "second:"]
    words += [f"{d}:" for d in DIMENSIONS]
    words += ["a", "moves", *flaws.COLOURS, *flaws.SHAPES, *world.DIRECTIONS, *flaws.WORDS]
    words += list(".,:;?!()'\"-/") + list("0123456789")
    words += [f"{tenths / 10:.1f}s" for tenths in range(0, 41)]
    words += ["more", "less", INSTRUCTIONS, "prompt:"]
    return SPECIAL + list(dict.fromkeys(words))


def build_processor() -> Any:
    """Tokenizer, image processor and chat template as one Qwen2.5-VL processor."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessorPil,
        Qwen2VLVideoProcessor,
    )

    vocabulary = {word: i for i, word in enumerate(build_vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    pieces = Regex(r"</?[a-z]+>|\d+\.\ds|[A-Za-z_]+:?|\d|[^\sA-Za-z_\d]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="removed", invert=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        additional_special_tokens=SPECIAL[3:],
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    pixels: dict[str, Any] = {
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 1,
        "size": {"shortest_edge": world.SIZE**2, "longest_edge": world.SIZE**2},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return Qwen2_5_VLProcessor(
        Qwen2VLImageProcessorPil(**pixels), fast, Qwen2VLVideoProcessor(**pixels), chat_template=CHAT_TEMPLATE
    )


def build_model(tokenizer: Any) -> Any:
    """A randomly initialised judge of about two million parameters."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 352,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 1,
            "window_size": PATCH * MERGE,
            "fullatt_block_indexes": [0, 1, 2],
            "out_hidden_size": 128,
        },
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def patches(frames: np.ndarray) -> torch.Tensor:
    """uint8 [N, 32, 32, 3] → float32 [N, 16, 192], in the image processor's order of values."""
    x = torch.from_numpy(frames).float() / 127.5 - 1
    return (
        x.reshape(-1, MERGE, PATCH, MERGE, PATCH, 3)
        .permute(0, 1, 3, 5, 2, 4)
        .reshape(-1, MERGE * MERGE, 3 * PATCH * PATCH)
    )


def see(model: Any, frames: torch.Tensor) -> torch.Tensor:
    """Visual tokens [N, 128] of patches [N, 16, 192], by the model's own tower.

    All frames go through one attention call. The stock forward loops over images in Python, which costs
    more than the arithmetic at this size.
    """
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

    tower = model.model.visual
    num, tokens, _ = frames.shape
    grid = torch.arange(MERGE)
    position = torch.stack([grid.repeat_interleave(MERGE), grid.repeat(MERGE)], dim=-1)
    cos, sin = tower.rotary_pos_emb(frames, position)
    hidden = F.linear(frames, tower.patch_embed.proj.weight.flatten(1))
    for block in tower.blocks:
        attention = block.attn
        qkv = attention.qkv(block.norm1(hidden)).view(num, tokens, 3, attention.num_heads, -1)
        query, key, value = qkv.unbind(2)
        query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        )
        hidden = hidden + attention.proj(mixed.transpose(1, 2).flatten(2))
        hidden = hidden + block.mlp(block.norm2(hidden))
    return tower.merger(hidden)


def start_from_nothing(model: Any, seed: int) -> None:
    """Random weights that keep signals at unit size; the stock 0.02 starts slowly at widths this small."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    nn.init.normal_(model.model.visual.patch_embed.proj.weight, std=(3 * PATCH * PATCH) ** -0.5)
    nn.init.normal_(model.model.language_model.embed_tokens.weight, std=0.1)


def embed(model: Any, rows: torch.Tensor, frames: np.ndarray) -> torch.Tensor:
    """Token embeddings [B, L, 128] with every image token replaced by what the tower sees."""
    words = model.model.language_model.embed_tokens(rows)
    seen = see(model, patches(frames.reshape(-1, *frames.shape[2:])))
    image = (rows == model.config.image_token_id)[..., None]
    return words.masked_scatter(image, seen.to(words.dtype))


def save(model: Any, processor: Any, out: Path) -> None:
    """A plain transformers folder whose weights are kept in half precision and read back as float32."""
    copy.deepcopy(model).to(torch.float16).save_pretrained(out)
    processor.save_pretrained(out)
    # the files are small, the arithmetic is not: whoever loads the folder as it says gets float32
    path = out / "config.json"
    config = json.loads(path.read_text())
    for section in (config, config["text_config"], config["vision_config"]):
        section["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n")
