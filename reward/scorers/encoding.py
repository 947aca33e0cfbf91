"""From one clip and its prompt to a model's inputs: the road that scoring and training a scorer share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from reward.config import JudgeConfig
from reward.encoding import Encoder, Prompt, ShownClip
from reward.frames import num_shown, show_frames, shown_json
from reward.question import ClipReader, Frames, Question, neutralise
from reward.scorers.head import HeadFile

_LEAST_FRAMES = 4  # at a rate: VideoReward shows no fewer of a short clip
_PAIR = 2  # and always an even number, since its model merges neighbours


class ClipEncoder(Encoder):
    """Encoder's processor, caches and batches, for the frames of one clip with words after them."""

    def __init__(self, processor: Any, config: JudgeConfig, head: HeadFile) -> None:
        """Raises ValueError for a processor without vision, or without the head's tokens or videos."""
        super().__init__(processor, config)
        self.head = head
        self.token_ids = [self._special_id(token) for token in head.tokens]
        # a caption must not say a token whose hidden state is read
        self.special_tokens |= set(head.tokens)
        self.video_token = getattr(processor, "video_token", None)
        if head.frames == "video" and (
            self.video_token is None or getattr(processor, "video_processor", None) is None
        ):
            raise ValueError(
                f"judge.model {config.model!r} has a reward head for videos, but no video processor; add the "
                "video processor's files, or choose a model that takes videos"
            )

    def clip(self, reader: ClipReader, question: Question, instructions: str) -> Prompt:
        """One clip of `question` and the `instructions`, whose {prompt} becomes the question's prompt.

        Raises ValueError where the chat template drops frames.
        """
        shown = self.seen(reader, question)
        words = instructions.replace("{prompt}", neutralise(question.prompt, self.special_tokens))
        text: dict[str, Any] = {"type": "text", "text": f"\n{words}\n"}
        if self.head.frames == "video":
            return self._video(shown, text)
        content: list[dict[str, Any]] = []
        for second in shown.times:
            if self.config.time_stamps:
                content.append({"type": "text", "text": f"{second:.1f}s"})
            content.append({"type": "image"})
        return self.encode([*content, text], (shown,))

    def seen(self, reader: ClipReader, question: Question) -> ShownClip:
        """One clip as the model sees it where `question` is asked."""
        return self._clips.get(reader, num_shown(self.config, question.segment is not None))

    def batch(self, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        """`collate`, and `places`: the positions [B, O] or [B, 1] whose hidden states the head reads."""
        batch = self.collate(prompts)
        width = batch["input_ids"].shape[1]
        starts = [width - len(prompt.ids) for prompt in prompts]
        places = [
            [start + self._place(prompt, token) for token in self.token_ids] or [width - 1]
            for start, prompt in zip(starts, prompts, strict=True)
        ]
        return {**batch, "places": torch.tensor(places)}

    def _place(self, prompt: Prompt, token: int) -> int:
        if prompt.ids.count(token) != 1:
            raise ValueError(
                f"the message of judge.model {self.config.model!r} holds the reward token "
                f"{self.tokenizer.convert_ids_to_tokens(token)} {prompt.ids.count(token)} times, not once; "
                "give the scorer's own tokenizer and instructions"
            )
        return prompt.ids.index(token)

    def _special_id(self, token: str) -> int:
        found = self.tokenizer.convert_tokens_to_ids(token)
        if found is None or found == self.tokenizer.unk_token_id:
            raise ValueError(
                f"judge.model {self.config.model!r}: its tokenizer has no token {token}, which "
                "reward_head.json names; save the tokenizer that the head was trained with beside it"
            )
        return found

    def _show(self, reader: ClipReader, num: int) -> ShownClip:
        frames = reader()
        if self.head.fps is not None:
            num = num_at_rate(len(frames.pixels), frames.fps, self.head.fps, num)
        if self.head.frames == "images":
            return self._pictured(*show_frames(frames, num, self.config.frame_size))
        return self._filmed(frames, num)

    def _filmed(self, frames: Frames, num: int) -> ShownClip:
        times, images = show_frames(frames, num, self.config.frame_size)
        video = np.stack([np.asarray(image) for image in images])
        # numpy [T, H, W, 3]; sampling is done, or the processor would drop frames at a rate of its own
        out = self.processor.video_processor(videos=[video], do_sample_frames=False, return_tensors="pt")
        size = images[0].height, images[0].width
        return ShownClip(times, size, [], out["pixel_values_videos"], out["video_grid_thw"])

    def _video(self, shown: ShownClip, words: dict[str, Any]) -> Prompt:
        message = [{"role": "user", "content": [{"type": "video"}, words]}]
        text = self.processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        if text.count(self.video_token) != 1:
            raise ValueError(
                f"the chat template of judge.model {self.config.model!r} shows "
                f"{text.count(self.video_token)} of 1 video; use a template with a video block"
            )
        assert shown.pixels is not None and shown.grid is not None
        num_tokens = int(shown.grid.prod()) // self.processor.video_processor.merge_size**2
        text = text.replace(self.video_token, self.video_token * num_tokens)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        video_id = self.tokenizer.convert_tokens_to_ids(self.video_token)
        vision = {"pixel_values_videos": shown.pixels, "video_grid_thw": shown.grid}
        told = shown_json([shown.times], [shown.size])
        return Prompt(ids, [2 * int(token == video_id) for token in ids], vision, told, 0)


def num_at_rate(num_frames: int, clip_fps: float, fps: float, most: int) -> int:
    """Frames shown of a clip at `fps`: an even number, at least 4, at most `most` and what there is."""
    wanted = min(max(num_frames / clip_fps * fps, _LEAST_FRAMES), most - most % _PAIR)
    return min(max(_PAIR * round(wanted / _PAIR), 1), num_frames)
