"""Questions about flawed clips of the embedded world, and the token rows that the judge learns from."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from loop.embedded import flaws, world
from loop.embedded.flaws import Combo
from loop.embedded.judge_model import INSTRUCTIONS
from reward.config import DIMENSIONS
from reward.question import Answer, Ask, ClipReader, Question, build_message, write_reply


@dataclass(frozen=True)
class Lines:
    """Questions of one length and their replies; rows are questions, pixels come first clip first."""

    frames: np.ndarray  # uint8 [B, 2 T, H, W, 3]
    prompts: list[str]
    replies: list[str]
    answers: list[dict[str, Answer]]
    words: list[str]  # the reasonings
    combos: list[tuple[Combo, Combo]]  # what the clips show


def _describe(first: flaws.View, second: flaws.View) -> str:
    return f"first: {first.describe(second)} second: {second.describe(first)}"


class Questions:
    """Draws questions about the clips of a pool."""

    def __init__(self, pool: flaws.Pool, rng: np.random.Generator) -> None:
        self.pool, self.rng = pool, rng
        self.by_caption: dict[Combo, list[int]] = defaultdict(list)
        for clip, view in enumerate(pool.views):
            self.by_caption[view.attributes].append(clip)
        self.combos = sorted(self.by_caption)

    def batch(self, size: int) -> Lines:
        rows: list[tuple[int, int, Combo, dict[str, Answer], str]] = []
        while len(rows) < size:
            first, second, prompt = self._draw()
            views = self.pool.views[first].against(prompt), self.pool.views[second].against(prompt)
            answers = flaws.compare_views(*views, DIMENSIONS)
            if answers is not None:
                rows.append((first, second, prompt, answers, _describe(*views)))
        clips = np.array([row[:2] for row in rows])
        return Lines(
            frames=self.pool.frames[clips].reshape(size, -1, *self.pool.frames.shape[2:]),
            prompts=[world.caption_of(*row[2]) for row in rows],
            replies=[write_reply(row[4], row[3]) for row in rows],
            answers=[row[3] for row in rows],
            words=[row[4] for row in rows],
            combos=[(self.pool.views[row[0]].attributes, self.pool.views[row[1]].attributes) for row in rows],
        )

    def _draw(self) -> tuple[int, int, Combo]:
        """Two clips, mostly alike in what they show, and a prompt that fits both, one or neither."""
        first = int(self.rng.integers(len(self.pool.views)))
        seen = self.pool.views[first].attributes
        kind = self.rng.random()
        if kind < 0.05:
            return first, first, self._near(seen) if self.rng.random() < 0.2 else seen
        other = seen if kind < 0.45 else self._near(seen) if kind < 0.75 else self._any()
        second = int(self.rng.choice(self.by_caption[other]))
        asked = self.rng.random()
        prompt = seen if asked < 0.36 else other if asked < 0.72 else self._near(seen)
        return first, second, prompt

    def _near(self, combo: Combo) -> Combo:
        """A caption of the pool that differs in one word."""
        near = [c for c in self.combos if sum(a != b for a, b in zip(c, combo, strict=True)) == 1]
        return near[self.rng.integers(len(near))] if near else self._any()

    def _any(self) -> Combo:
        return self.combos[self.rng.integers(len(self.combos))]


class Writer:
    """Questions as token rows, with the very messages of `reward.question` and the shipped chat template."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.prefixes: dict[tuple[str, int], list[int]] = {}

    def prefix(self, prompt: str, num_frames: int) -> list[int]:
        """The tokens of a question whose clips are shown in `num_frames` frames each."""
        if (prompt, num_frames) not in self.prefixes:
            unread: ClipReader = None  # type: ignore[assignment]  # the wording needs no frames
            ask = Ask(Question("", "known", prompt, unread, unread, DIMENSIONS), False, 0)
            times = [frame / world.FPS for frame in range(num_frames)]
            content = build_message(ask, INSTRUCTIONS, (times, times), time_stamps=False)
            text = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            self.prefixes[prompt, num_frames] = self.processor.tokenizer(text).input_ids
        return self.prefixes[prompt, num_frames]

    def rows(self, lines: Lines) -> tuple[torch.Tensor, int]:
        """Token rows, int64 [B, L], padded on the right, and the number of tokens before the reply."""
        num_frames = lines.frames.shape[1] // 2
        before = [self.prefix(prompt, num_frames) for prompt in lines.prompts]
        replies = self.processor.tokenizer(
            [reply + "<|im_end|>" for reply in lines.replies], padding=True, padding_side="right"
        ).input_ids
        return torch.tensor([a + b for a, b in zip(before, replies, strict=True)]), len(before[0])

    def labels(self, lines: Lines) -> torch.Tensor:
        """What the replies of `rows` teach, int64 [B, L of the replies]; −100 where they teach nothing.

        The direction in a description is taught by strange clips alone: see `flaws.STRANGE_COLOURS`.
        """
        rows, start = self.rows(lines)
        wanted = rows[:, start:].clone()
        tokenizer = self.processor.tokenizer
        wanted[wanted == tokenizer.pad_token_id] = -100
        directions = torch.tensor(tokenizer.convert_tokens_to_ids(list(world.DIRECTIONS)))
        for row, combos in zip(wanted, lines.combos, strict=True):
            places = torch.isin(row, directions).nonzero().flatten().tolist()
            for place, combo in zip(places, combos, strict=True):
                if flaws.part_of(combo) != "strange":
                    row[place] = -100
        return wanted
