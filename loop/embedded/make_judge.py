"""Makes the weights of the embedded judge from nothing: a tiny real Qwen2.5-VL that looks, describes, compares.

Runs unattended on one core: `python -m loop.embedded.make_judge OUT`.
docs/embedded.md says how long it took and on what machine.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from loop.embedded import flaws, world
from reward.config import DIMENSIONS
from reward.question import Ask, ClipReader, Question, build_message, parse_reply, write_reply
from reward.sides import compare

INSTRUCTIONS = "compare"
PATCH, MERGE = 8, 4  # 4 x 4 patches of 8 x 8 pixels: one 32 x 32 frame is one visual token
IMAGE = "<|image_pad|>"
SPECIAL = [
    "<unk>",
    "<|pad|>",
    "<|im_end|>",
    "<|im_start|>",
    "<|vision_start|>",
    "<|vision_end|>",
    IMAGE,
    "<|video_pad|>",
]
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
    words = [
        "<reasoning>",
        "</reasoning>",
        "<answer>",
        "</answer>",
        "first",
        "second",
        "tie",
        "first:",
        "second:",
    ]
    words += [f"{d}:" for d in DIMENSIONS]
    words += ["a", "moves", *world.COLOURS, *world.SHAPES, *world.DIRECTIONS, *flaws.WORDS]
    words += list(".,:;?!()'\"-/") + list("0123456789")
    words += [f"{tenths / 10:.1f}s" for tenths in range(0, 41)]
    words += ["more", "less", INSTRUCTIONS, "prompt:"]
    return SPECIAL + list(dict.fromkeys(words))


def build_processor():
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
    pixels = dict(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=1,
        size={"shortest_edge": world.SIZE**2, "longest_edge": world.SIZE**2},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return Qwen2_5_VLProcessor(
        Qwen2VLImageProcessorPil(**pixels), fast, Qwen2VLVideoProcessor(**pixels), chat_template=CHAT_TEMPLATE
    )


def build_model(tokenizer):
    """A randomly initialised judge of about two million parameters."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [4, 6, 6]},
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
        ),
        vision_config=dict(
            depth=3,
            hidden_size=64,
            intermediate_size=160,
            num_heads=4,
            patch_size=PATCH,
            spatial_merge_size=MERGE,
            temporal_patch_size=1,
            window_size=PATCH * MERGE,
            fullatt_block_indexes=[0, 1, 2],
            out_hidden_size=128,
        ),
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


def see(model, frames: torch.Tensor) -> torch.Tensor:
    """Visual tokens [N, 128] of patches [N, 16, 192]: the model's own tower, all frames in one attention call.

    The stock forward loops over images in Python, which costs more than the arithmetic at this size.
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


def start_from_nothing(model, seed: int) -> None:
    """Random weights that keep signals at unit size; the stock 0.02 starts slowly at widths this small."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    nn.init.normal_(model.model.visual.patch_embed.proj.weight, std=(3 * PATCH * PATCH) ** -0.5)
    nn.init.normal_(model.model.language_model.embed_tokens.weight, std=0.1)


class Lesson:
    """AdamW over some parameters with warm-up, a cosine to nearly zero, and a log line now and then."""

    def __init__(self, name: str, parameters: list[nn.Parameter], num_steps: int, lr: float) -> None:
        self.name, self.parameters, self.num_steps, self.lr = name, parameters, num_steps, lr
        self.optimiser = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
        self.done, self.start = 0, time.time()

    def step(self, loss: torch.Tensor, note: str = "") -> None:
        factor = min(1.0, (self.done + 1) / 60) * (
            0.02 + 0.49 * (1 + np.cos(np.pi * self.done / self.num_steps))
        )
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr * factor
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.done += 1
        if self.done % 50 == 0 or self.done == self.num_steps:
            print(
                f"{self.name} {self.done} loss {loss.item():.4f} {note} {time.time() - self.start:.0f} s",
                flush=True,
            )


def learn_to_see(model, rng: np.random.Generator, num_steps: int = 400, batch: int = 512) -> None:
    """The vision tower alone, on single frames: colour, shape, place and still flaws, by a linear head.

    Pictures are learnt in a minute this way, where the words of a whole reply teach them in ten.
    """
    # every step sees new frames of old clips; a clip has but one of the still flaws, or none
    pool = flaws.draw_pool(3000, "train", rng, names=flaws.STILL)
    colours, stills = list(world.COLOURS), (None, *flaws.STILL)
    truth = torch.tensor(
        [
            (colours.index(v.attributes[0]), world.SHAPES.index(v.attributes[1]), stills.index(v.flaw))
            for v in pool.views
        ]
    )
    places = torch.from_numpy(pool.places).float() / world.SIZE
    sizes = (len(colours), len(world.SHAPES), len(stills))
    head = nn.Linear(model.config.text_config.hidden_size, sum(sizes) + 2)
    lesson = Lesson("see", [*model.model.visual.parameters(), *head.parameters()], num_steps, 2e-3)
    for _ in range(num_steps):
        clip, frame = (
            rng.integers(len(pool.views), size=batch),
            rng.integers(pool.frames.shape[1], size=batch),
        )
        with torch.autocast("cpu", torch.bfloat16):
            said = head(see(model, patches(pool.frames[clip, frame]))).float()
        parts = said.split([*sizes, 2], dim=1)
        loss = 50 * F.mse_loss(parts[3], places[clip, frame])
        right = []
        for logits, wanted in zip(parts, truth[clip].T, strict=False):
            loss = loss + F.cross_entropy(logits, wanted)
            right.append(f"{(logits.argmax(1) == wanted).float().mean().item():.2f}")
        lesson.step(loss, f"colour, shape, flaw {' '.join(right)}")


@dataclass(frozen=True)
class Lines:
    """Questions of one length and their replies; rows are questions, pixels come first clip first."""

    frames: np.ndarray  # uint8 [B, 2 T, H, W, 3]
    prompts: list[str]
    replies: list[str]
    answers: list[dict[str, str]]
    words: list[str]


def _describe(first: flaws.View, second: flaws.View) -> str:
    return f"first: {first.describe(second)} second: {second.describe(first)}"


class Questions:
    """Draws questions about the clips of a pool."""

    def __init__(self, pool: flaws.Pool, rng: np.random.Generator) -> None:
        self.pool, self.rng = pool, rng
        self.by_caption: dict[tuple[str, str, str], list[int]] = defaultdict(list)
        for clip, view in enumerate(pool.views):
            self.by_caption[view.attributes].append(clip)
        self.combos = sorted(self.by_caption)

    def batch(self, size: int) -> Lines:
        rows = []
        while len(rows) < size:
            first, second, prompt = self._draw()
            views = self.pool.views[first].against(prompt), self.pool.views[second].against(prompt)
            same = first == second
            answers = dict.fromkeys(DIMENSIONS, "tie") if same else compare(*views, DIMENSIONS)
            if answers is not None:
                rows.append((first, second, prompt, answers, _describe(*views)))
        clips = np.array([row[:2] for row in rows])
        return Lines(
            frames=self.pool.frames[clips].reshape(size, -1, *self.pool.frames.shape[2:]),
            prompts=[world.caption_of(*row[2]) for row in rows],
            replies=[write_reply(row[4], row[3]) for row in rows],
            answers=[row[3] for row in rows],
            words=[row[4] for row in rows],
        )

    def _draw(self) -> tuple[int, int, tuple[str, str, str]]:
        """Two clips, mostly alike in what they show, and a prompt that fits both, one or neither."""
        first = int(self.rng.integers(len(self.pool.views)))
        seen = self.pool.views[first].attributes
        kind = self.rng.random()
        if kind < 0.05:
            return first, first, self._near(seen) if self.rng.random() < 0.2 else seen
        other = seen if kind < 0.6 else self._near(seen) if kind < 0.85 else self._any()
        second = int(self.rng.choice(self.by_caption[other]))
        asked = self.rng.random()
        prompt = seen if asked < 0.42 else other if asked < 0.84 else self._near(seen)
        return first, second, prompt

    def _near(self, combo: tuple[str, str, str]) -> tuple[str, str, str]:
        """A caption of the pool that differs in one word."""
        near = [c for c in self.combos if sum(a != b for a, b in zip(c, combo, strict=True)) == 1]
        return near[self.rng.integers(len(near))] if near else self._any()

    def _any(self) -> tuple[str, str, str]:
        return self.combos[self.rng.integers(len(self.combos))]


class Writer:
    """Questions as token rows, with the very messages of `reward.question` and the shipped chat template."""

    def __init__(self, processor) -> None:
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


def embed(model, rows: torch.Tensor, frames: np.ndarray) -> torch.Tensor:
    """Token embeddings [B, L, 128] with every image token replaced by what the tower sees."""
    words = model.model.language_model.embed_tokens(rows)
    seen = see(model, patches(frames.reshape(-1, *frames.shape[2:])))
    image = (rows == model.config.image_token_id)[..., None]
    return words.masked_scatter(image, seen.to(words.dtype))


def learn_to_judge(
    model, writer: Writer, out: Path, rng: np.random.Generator, num_steps: int, batch: int = 48
) -> None:
    """Describe both clips, then compare: cross-entropy on whole replies, whole clips and segments."""
    whole = Questions(flaws.draw_pool(12000, "train", rng), rng)
    segments = [Questions(flaws.draw_pool(2500, "train", rng, num_frames=n), rng) for n in (5, 6, 7)]
    held_out = Questions(
        flaws.draw_pool(1500, "calibrate", np.random.default_rng(1)), np.random.default_rng(2)
    )
    check = held_out.batch(256)
    lesson = Lesson("judge", list(model.parameters()), num_steps, 1.5e-3)
    saved = time.time()
    for step in range(num_steps):
        lines = (segments[step // 4 % 3] if step % 4 == 3 else whole).batch(batch)
        rows, start = writer.rows(lines)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model.language_model(
                inputs_embeds=embed(model, rows, lines.frames), use_cache=False
            )
            logits = model.lm_head(hidden.last_hidden_state[:, start - 1 : -1]).float()
        wanted = rows[:, start:].flatten()
        lesson.step(
            F.cross_entropy(logits.flatten(0, 1), wanted, ignore_index=model.config.text_config.pad_token_id)
        )
        if time.time() - saved > 120 or step == num_steps - 1:
            table = examine(model, writer, check)
            print(json.dumps({"step": step + 1, **table}), flush=True)
            save(model, writer.processor, out / "steps" / f"{step + 1:05d}")
            saved = time.time()


@torch.no_grad()
def reply(model, writer: Writer, lines: Lines, temperature: float, seed: int = 0) -> list[str]:
    """The model's own replies, greedy where the temperature is 0."""
    rows, start = writer.rows(lines)
    language, draws = model.model.language_model, torch.Generator().manual_seed(seed)
    out = language(inputs_embeds=embed(model, rows[:, :start], lines.frames), use_cache=True)
    said = []
    for _ in range(rows.shape[1] - start + 4):
        logits = model.lm_head(out.last_hidden_state[:, -1])
        if temperature > 0:
            token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=draws)
        else:
            token = logits.argmax(-1, keepdim=True)
        said.append(token)
        out = language(
            inputs_embeds=language.embed_tokens(token), past_key_values=out.past_key_values, use_cache=True
        )
    texts = writer.processor.tokenizer.batch_decode(torch.cat(said, 1))
    return [text.split("<|im_end|>")[0].strip() for text in texts]


def _sentences(reasoning: str) -> list[list[str]]:
    """The words about the first and the second clip; an empty list where there is no sentence."""
    first, _, second = reasoning.replace(",", " ").replace(".", " ").partition("second:")
    return [first.split(), ["second:", *second.split()]]


def examine(model, writer: Writer, lines: Lines) -> dict[str, float]:
    """Shares of right answers by dimension and of right words of the description, greedy and sampled."""
    model.eval()
    table: dict[str, float] = {}
    for name, temperature in (("", 0.0), ("sampled_", 1.0)):
        right: dict[str, list[bool]] = defaultdict(list)
        for text, answers, words in zip(
            reply(model, writer, lines, temperature), lines.answers, lines.words, strict=True
        ):
            parsed = parse_reply(text, DIMENSIONS)
            right["parsed"].append(parsed.answers is not None)
            for dimension in DIMENSIONS:
                right[dimension].append(
                    parsed.answers is not None and parsed.answers[dimension] == answers[dimension]
                )
            for told, truth in zip(_sentences(parsed.reasoning), _sentences(words), strict=False):
                for key, place in (("colour", 2), ("shape", 3), ("direction", 5), ("flaw", -1)):
                    right[key].append(len(told) >= 7 and told[place] == truth[place])
        table |= {name + key: round(float(np.mean(values)), 3) for key, values in right.items()}
    model.train()
    return table


def save(model, processor, out: Path) -> None:
    """A plain transformers folder in half precision; it is read back as float32 on a CPU."""
    import copy

    small = copy.deepcopy(model).to(torch.float16)
    small.save_pretrained(out)
    processor.save_pretrained(out)


def main(argv: list[str]) -> None:
    torch.set_num_threads(1)
    out, num_steps = Path(argv[0]), int(argv[1]) if len(argv) > 1 else 2400
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    processor = build_processor()
    model = build_model(processor.tokenizer)
    start_from_nothing(model, seed=0)
    learn_to_see(model, rng)
    learn_to_judge(model, Writer(processor), out, rng, num_steps)
    save(model, processor, out)


if __name__ == "__main__":
    main(sys.argv[1:])
