"""VideoReward's published layout with a tiny random Qwen2-VL, and its scores as the authors compute them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from tests.tiny_models import SPECIAL, TEMPLATE, _tokenizer

TOKENS = ["<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>"]
PROMPT = "rate a <|VQ_reward|> the <|MQ_reward|> {text_prompt} <|TA_reward|> ."
_IMAGE = "{% if c['type'] == 'image' %}"
_VIDEO = (
    "{% if c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% elif c['type'] == 'image' %}"
)


class TinyVideoReward:
    """The folders `base`, `weights` and `code`, and the PEFT model and head that the weights are from."""

    def __init__(self, root: Path, *, whole: bool = True, outputs: int = 1) -> None:
        self.base, self.weights, self.code = root / "base", root / "weights", root / "code"
        self.tokenizer = _make_base(self.base)
        self.tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIAL[1:], *TOKENS]})
        torch.manual_seed(1)
        model = Qwen2VLForConditionalGeneration.from_pretrained(self.base)
        model.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        linear = r".*language_model\.layers\..*_proj"
        self.model = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=linear)).eval()
        for name, parameter in self.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        self.head = torch.randn(outputs, 32)
        self._publish(whole)

    def _publish(self, whole: bool) -> None:
        checkpoint = self.weights / "checkpoint-70"
        (self.weights / "checkpoint-9").mkdir(parents=True)
        checkpoint.mkdir()
        self.tokenizer.save_pretrained(checkpoint / "tokenizer")
        tensors = {_old_name(name): tensor for name, tensor in self.model.state_dict().items()}
        tensors["base_model.model.rm_head.weight"] = self.head
        if whole:
            torch.save(tensors, checkpoint / "model.pth")
        else:
            adapters = {n.replace(".default", ""): t.clone() for n, t in tensors.items() if "lora_" in n}
            save_file(adapters, checkpoint / "adapter_model.safetensors")
            beside = {n: t for n, t in tensors.items() if "embed_tokens" in n or "rm_head" in n}
            # a tied lm_head is the embedding under another name
            torch.save(beside, checkpoint / "non_lora_state_dict.pth")
        settings = {
            "data_config": {
                "fps": 2.0,
                "max_frame_pixels": 40 * 32 * 32,
                "prompt_template_type": "detailed_special",
            },
            "model_config": {"model_name_or_path": str(self.base), "use_special_tokens": True},
            "peft_lora_config": {"lora_enable": True, "lora_r": 2, "lora_alpha": 4, "use_rslora": False},
            "inference_config": {
                "VQ_mean": 1.0, "VQ_std": 2.0, "MQ_mean": -1.0, "MQ_std": 0.5, "TA_mean": 0.0, "TA_std": 4.0,
            },
        }  # fmt: skip
        (self.weights / "model_config.json").write_text(json.dumps(settings))
        self.code.mkdir()
        text = f'DETAILED_PROMPT_WITH_SPECIAL_TOKEN = """\n{PROMPT}"""\nprint("this must not run")\n'
        (self.code / "prompt_template.py").write_text(text)

    @torch.inference_mode()
    def raw(self, ids: list[int], pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """VQ, MQ and TA: the language model gets embeddings, no position ids, and unmerged adapters."""
        inner = self.model.get_base_model().model
        ids_1L = torch.tensor([ids])
        embeds_1LH = inner.language_model.embed_tokens(ids_1L)
        seen = inner.visual(pixels, grid_thw=grid).pooler_output
        is_video = (ids_1L == self.tokenizer.convert_tokens_to_ids("<|video_pad|>"))[..., None]
        embeds_1LH = embeds_1LH.masked_scatter(is_video.expand_as(embeds_1LH), seen)
        hidden_LH = inner.language_model(inputs_embeds=embeds_1LH, use_cache=False).last_hidden_state[0]
        places = [ids.index(self.tokenizer.convert_tokens_to_ids(token)) for token in TOKENS]
        logits_33 = hidden_LH[places] @ self.head.expand(3, -1).T
        return logits_33.diagonal()


def _old_name(name: str) -> str:
    """PEFT's names around those of transformers 4.45."""
    return name.replace("model.model.language_model.", "model.model.").replace(
        "model.model.visual.", "model.visual."
    )


def _make_base(folder: Path):
    tokenizer = _tokenizer("rate")
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    vision = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    size = {"shortest_edge": 32**2, "longest_edge": 64**2}
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(size=size, **vision),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size, **vision),
        chat_template=TEMPLATE.replace(_IMAGE, _VIDEO),
    )
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
            "tie_word_embeddings": True,
            "pad_token_id": ids["<|pad|>"],
        },
        vision_config={
            "depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2,
            "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return tokenizer
