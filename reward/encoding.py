"""From an ask to a vision-language model's inputs: the one road that asking and training share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from reward.config import JudgeConfig
from reward.frames import ClipCache, instructions_of, num_shown, show, shown_json
from reward.question import Ask, ClipReader, build_message
from reward.replies import format_of


@dataclass(frozen=True)
class ShownClip:
    """The frames of one clip as the model sees them.

    `times` in seconds; `size`: height and width in pixels, as the processor gets them. Models with one patch
    sequence for all images (the Qwen-VL line) have `pixels` [num_patches, patch_values] and `grid`
    [num_frames, 3] ready; others keep PIL `images`.
    """

    times: list[float]
    size: tuple[int, int]
    images: list[Image.Image]
    pixels: torch.Tensor | None = None
    grid: torch.Tensor | None = None

    @property
    def num_bytes(self) -> int:
        images = sum(image.width * image.height * 3 for image in self.images)
        return images + (self.pixels.numel() * self.pixels.element_size() if self.pixels is not None else 0)


@dataclass(frozen=True)
class Prompt:
    """One tokenised message: token `ids`, and every other input of the model for this row.

    `shown` describes the frames, as Vote.shown.
    """

    ids: list[int]
    types: list[int] | None  # mm_token_type_ids, without which Qwen loses its position encoding
    vision: dict[str, torch.Tensor]
    shown: str
    num_images: int


class Encoder:
    """Wording, frames and tokens for one processor and one judge section of the config."""

    def __init__(self, processor: Any, config: JudgeConfig) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.config = config
        self.instructions = instructions_of(config)
        self.pad_id = self.tokenizer.pad_token_id
        if self.pad_id is None:
            self.pad_id = self.tokenizer.eos_token_id
        self.special_tokens = _special_tokens(processor)
        image_processor = getattr(processor, "image_processor", None)
        if image_processor is None:
            raise ValueError(
                f"judge.model {config.model!r} has no image processor; choose a model with vision"
            )
        self.merge_size = getattr(image_processor, "merge_size", None)
        self.image_token = getattr(processor, "image_token", None)
        self._clips: ClipCache[ShownClip] = ClipCache(self._show)
        self.reply_end = self._find_reply_end()

    def prompt(self, ask: Ask) -> Prompt:
        """The ask as tokens, up to where the reply starts. Raises ValueError where frames get lost."""
        num = num_shown(self.config, ask.question.segment is not None)
        shown = tuple(self._clips.get(reader, num) for reader in ask.shown)
        content = build_message(
            ask,
            self.instructions,
            (shown[0].times, shown[1].times),
            time_stamps=self.config.time_stamps,
            special_tokens=self.special_tokens,
            layout=format_of(self.config).layout,
        )
        return self.encode(content, shown)

    def encode(self, content: list[dict[str, Any]], shown: tuple[ShownClip, ...]) -> Prompt:
        """Chat content with an image block for every frame of the `shown` clips, in their order, as tokens.

        Raises ValueError where frames get lost.
        """
        message = [{"role": "user", "content": content}]
        text = self.processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        num_frames = sum(len(clip.times) for clip in shown)
        if self.image_token is not None and text.count(self.image_token) != num_frames:
            raise ValueError(
                f"the chat template of judge.model {self.config.model!r} shows "
                f"{text.count(self.image_token)} of {num_frames} images; use a template with an image block"
            )
        told = shown_json([clip.times for clip in shown], [clip.size for clip in shown])
        encode = self._patched if shown[0].pixels is not None else self._processed
        return encode(text, shown, told)

    def reply_ids(self, reply: str) -> list[int]:
        """Tokens of a reply to learn, with what ends the assistant's turn."""
        return self.tokenizer(reply + self.reply_end, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of sampled tokens; special ones stay, a reply with one is not in the grammar."""
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def collate(
        self, prompts: Sequence[Prompt], replies: Sequence[list[int]] | None = None
    ) -> dict[str, torch.Tensor]:
        """One batch: prompts padded on the left, and after them the replies padded on the right.

        input_ids, attention_mask (and mm_token_type_ids) [B, L]; the vision inputs of all rows in order;
        with `replies` also `completion_mask` [B, L], 1 on reply tokens.
        """
        width = max(len(p.ids) for p in prompts)
        tail = max(len(r) for r in replies) if replies is not None else 0
        ids = torch.full((len(prompts), width + tail), self.pad_id, dtype=torch.long)
        mask, types, completion = (torch.zeros_like(ids) for _ in range(3))
        for row, p in enumerate(prompts):
            start = width - len(p.ids)
            ids[row, start:width] = torch.tensor(p.ids)
            mask[row, start:width] = 1
            if p.types is not None:
                types[row, start:width] = torch.tensor(p.types)
            if replies is not None:
                stop = width + len(replies[row])
                ids[row, width:stop] = torch.tensor(replies[row])
                mask[row, width:stop] = 1
                completion[row, width:stop] = 1
        batch = {"input_ids": ids, "attention_mask": mask}
        if prompts[0].types is not None:
            batch["mm_token_type_ids"] = types
        for name in prompts[0].vision:
            batch[name] = torch.cat([p.vision[name] for p in prompts])
        if replies is not None:
            batch["completion_mask"] = completion
        return batch

    def _show(self, reader: ClipReader, num: int) -> ShownClip:
        return self._pictured(*show(reader, num, self.config.frame_size))

    def _pictured(self, times: list[float], images: list[Image.Image]) -> ShownClip:
        size = images[0].height, images[0].width
        if self.merge_size is None or self.image_token is None:
            return ShownClip(times, size, images)
        out = self.processor.image_processor(images=images, return_tensors="pt")
        if set(out) != {"pixel_values", "image_grid_thw"}:
            return ShownClip(times, size, images)
        return ShownClip(times, size, [], out["pixel_values"], out["image_grid_thw"])

    def _patched(self, text: str, shown: tuple[ShownClip, ...], told: str) -> Prompt:
        """What the processor would do, from patches that are already there (a clip is shown in many asks)."""
        assert self.merge_size is not None
        pixels, grids = [clip.pixels for clip in shown], [clip.grid for clip in shown]
        grid = torch.cat([g for g in grids if g is not None])
        pieces = text.split(self.image_token)
        for index, patches in enumerate(grid.prod(dim=-1).tolist()):
            pieces[index] += self.image_token * (patches // self.merge_size**2)
        ids = self.tokenizer("".join(pieces), add_special_tokens=False)["input_ids"]
        image_id = self.tokenizer.convert_tokens_to_ids(self.image_token)
        vision = {"pixel_values": torch.cat([p for p in pixels if p is not None]), "image_grid_thw": grid}
        return Prompt(ids, [int(token == image_id) for token in ids], vision, told, len(grid))

    def _processed(self, text: str, shown: tuple[ShownClip, ...], told: str) -> Prompt:
        images = [image for clip in shown for image in clip.images]
        out = self.processor(text=[text], images=images, return_tensors="pt", add_special_tokens=False)
        out.pop("attention_mask")
        types = out.pop("mm_token_type_ids", None)
        ids = out.pop("input_ids")[0].tolist()
        return Prompt(ids, None if types is None else types[0].tolist(), dict(out), told, len(images))

    def _find_reply_end(self) -> str:
        """What the chat template puts after a reply, e.g. <|im_end|>; else the end-of-text token."""
        user = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
        reply = [{"role": "assistant", "content": [{"type": "text", "text": "REPLY"}]}]
        start = self.processor.apply_chat_template(user, tokenize=False, add_generation_prompt=True)
        whole = self.processor.apply_chat_template(user + reply, tokenize=False)
        end = whole.rpartition("REPLY")[2].rstrip() if whole.startswith(start) and "REPLY" in whole else ""
        return end or self.tokenizer.eos_token


def _special_tokens(processor: Any) -> set[str]:
    """Every token that means more than its letters: the tokenizer's, and those that stand for images."""
    tokenizer = processor.tokenizer
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    of_vision = (value for name, value in vars(processor).items() if name.endswith("_token"))
    return {
        *tokenizer.all_special_tokens,
        *(str(token) for token in added if token.special),
        *(token for token in of_vision if isinstance(token, str)),
    }
