"""Makes the weights of the embedded judge from nothing: it learns to see, to describe, to compare.

Runs unattended on one core: `python -m loop.embedded.make_judge OUT [STEPS]`.
docs/embedded.md says how long it took and on what machine.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from loop.embedded import flaws, world
from loop.embedded.judge_model import (
    build_model,
    build_processor,
    embed,
    patches,
    save,
    see,
    start_from_nothing,
)
from loop.embedded.judge_questions import Lines, Questions, Writer
from reward.config import DIMENSIONS
from reward.question import parse_reply

STRANGE = 0.4  # share of the clips that are not of the world
DREAMS = 0.45  # share of the clips that are dreams


class Lesson:
    """AdamW over some parameters with warm-up, a cosine to nearly zero, and a log line now and then."""

    def __init__(self, name: str, parameters: list[nn.Parameter], num_steps: int, lr: float) -> None:
        self.name, self.parameters, self.num_steps, self.lr = name, parameters, num_steps, lr
        self.optimiser = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
        self.done, self.start = 0, time.time()

    def step(self, loss: torch.Tensor, note: str = "") -> None:
        cosine = 0.02 + 0.49 * (1 + np.cos(np.pi * self.done / self.num_steps))
        factor = min(1.0, (self.done + 1) / 60) * cosine
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr * factor
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.done += 1
        if self.done % 50 == 0 or self.done == self.num_steps:
            took = f"{time.time() - self.start:.0f} s"
            print(f"{self.name} {self.done} loss {loss.item():.4f} {note} {took}", flush=True)


def shipped_roundtrip() -> flaws.Roundtrip:
    """A clip through the embedded generator's autoencoder, as every clip of a campaign has gone."""
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan.from_pretrained(Path(__file__).parent / "tiny-wan" / "vae").eval()

    @torch.no_grad()
    def roundtrip(frames: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample[0].clamp(-1, 1)
        return ((y + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()

    return roundtrip


def learn_to_see(
    model: Any, rng: np.random.Generator, roundtrip: flaws.Roundtrip, num_steps: int = 650, batch: int = 512
) -> None:
    """The vision tower alone, on single frames: colour, shape, place and still flaws, by a linear head.

    Pictures are learnt in a minute this way, where the words of a whole reply teach them in ten.
    """
    # every step sees new frames of old clips; a clip has but one of the still flaws, or none
    pool = flaws.draw_pool(2500, "train", rng, names=flaws.STILL, strange=STRANGE, roundtrip=roundtrip)
    colours, stills = list(flaws.COLOURS), (None, *flaws.STILL)
    truth = torch.tensor(
        [
            (
                colours.index(view.attributes[0]),
                flaws.SHAPES.index(view.attributes[1]),
                stills.index(view.flaw),
            )
            for view in pool.views
        ]
    )
    places = torch.from_numpy(pool.places).float() / world.SIZE
    sizes = (len(colours), len(flaws.SHAPES), len(stills))
    head = nn.Linear(model.config.text_config.hidden_size, sum(sizes) + 2)
    lesson = Lesson("see", [*model.model.visual.parameters(), *head.parameters()], num_steps, 2e-3)
    for _ in range(num_steps):
        clip = rng.integers(len(pool.views), size=batch)
        frame = rng.integers(pool.frames.shape[1], size=batch)
        with torch.autocast("cpu", torch.bfloat16):
            said = head(see(model, patches(pool.frames[clip, frame]))).float()
        parts = said.split([*sizes, 2], dim=1)
        loss = 50 * F.mse_loss(parts[3], places[clip, frame])
        right = []
        for logits, wanted in zip(parts, truth[clip].T, strict=False):
            loss = loss + F.cross_entropy(logits, wanted)
            right.append(f"{(logits.argmax(1) == wanted).float().mean().item():.2f}")
        lesson.step(loss, f"colour, shape, flaw {' '.join(right)}")


def learn_to_judge(
    model: Any,
    writer: Writer,
    out: Path,
    rng: np.random.Generator,
    roundtrip: flaws.Roundtrip,
    num_steps: int,
    batch: int = 48,
) -> None:
    """Describe both clips, then compare: cross-entropy on whole replies, whole clips and segments."""
    mix: dict[str, Any] = {"strange": STRANGE, "dreams": DREAMS, "roundtrip": roundtrip}
    whole = Questions(flaws.draw_pool(9000, "train", rng, **mix), rng)
    segments = [
        Questions(flaws.draw_pool(1800, "train", rng, num_frames=length, **mix), rng)
        for length in (4, 5, 6, 7)
    ]
    held_out = flaws.draw_pool(800, "calibrate", np.random.default_rng(1), dreams=DREAMS, roundtrip=roundtrip)
    check = Questions(held_out, np.random.default_rng(2)).batch(256)
    lesson = Lesson("judge", list(model.parameters()), num_steps, 1.5e-3)
    for step in range(num_steps):
        lines = (segments[step // 3 % 4] if step % 3 == 2 else whole).batch(batch)
        rows, start = writer.rows(lines)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model.language_model(
                inputs_embeds=embed(model, rows, lines.frames), use_cache=False
            )
            logits = model.lm_head(hidden.last_hidden_state[:, start - 1 : -1]).float()
        lesson.step(F.cross_entropy(logits.flatten(0, 1), writer.labels(lines).flatten()))
        if (step + 1) % 200 == 0 or step == num_steps - 1:
            print(json.dumps({"step": step + 1, **examine(model, writer, check)}), flush=True)
            save(model, writer.processor, out / "steps" / f"{step + 1:05d}")


@torch.no_grad()
def reply(model: Any, writer: Writer, lines: Lines, temperature: float, seed: int = 0) -> list[str]:
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


def examine(model: Any, writer: Writer, lines: Lines) -> dict[str, float]:
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


def main(argv: list[str]) -> None:
    torch.set_num_threads(1)
    out, num_steps = Path(argv[0]), int(argv[1]) if len(argv) > 1 else 2200
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    processor = build_processor()
    model = build_model(processor.tokenizer)
    start_from_nothing(model, seed=0)
    roundtrip = shipped_roundtrip()
    learn_to_see(model, rng, roundtrip)
    learn_to_judge(model, Writer(processor), out, rng, roundtrip, num_steps)
    save(model, processor, out)


if __name__ == "__main__":
    main(sys.argv[1:])
