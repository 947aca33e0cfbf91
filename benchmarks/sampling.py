"""Takes a second: our sampler against the diffusers pipeline's own call, as ratios in one run.

    python benchmarks/sampling.py [--prompts 4] [--takes 8] [--steps 12] [--guidance 1 5] [--repeats 3]

Arms, on the same model, prompts and seeds, up to the clean latents:
  one by one  the pipeline once a take, as most scripts do: the prompt is embedded each time, and guidance
              costs two forwards
  batched     the pipeline once a prompt, all its takes together
  ours        all takes of all prompts in batches, every prompt embedded once, guidance in one forward

The first arm's takes are checked against ours before anything is timed. Prints one JSON row an arm: the
median of repeats taken in turns, and takes a second as a ratio to `one by one`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import loop.embedded as embedded
from generator.config import GeneratorConfig, SamplingConfig
from generator.models.base import VideoModel, load_model
from generator.sampling import noise_for, sample
from loop.embedded import world

FRAMES, SIZE, TEXT_TOKENS = 17, 32, 8


class Arms:
    """Each method films all takes once; latents [prompts × takes, C, T', H', W'] in one order."""

    def __init__(self, model: VideoModel, prompts: list[str], takes: int, config: SamplingConfig) -> None:
        self.model, self.prompts, self.takes, self.config = model, prompts, takes, config
        seeds = range(len(prompts) * takes)
        self.noise = noise_for(seeds, model.latent_shape(FRAMES, SIZE, SIZE))

    def one_by_one(self) -> torch.Tensor:
        return torch.cat(
            [self._pipeline(p, self.noise[[k * self.takes + n]])
             for k, p in enumerate(self.prompts) for n in range(self.takes)]
        )  # fmt: skip

    def batched(self) -> torch.Tensor:
        return torch.cat(
            [
                self._pipeline(p, self.noise[k * self.takes :][: self.takes])
                for k, p in enumerate(self.prompts)
            ]
        )

    def ours(self) -> torch.Tensor:
        condition = self.model.encode_prompts(self.prompts)
        rows = torch.arange(len(self.prompts)).repeat_interleave(self.takes)
        negative = self.model.encode_prompts([""]) if self.config.guidance_scale > 1 else None
        return sample(self.model, condition.rows(rows), self.noise, self.config, negative=negative)

    def calls(self) -> dict[str, Callable[[], torch.Tensor]]:
        return {"one by one": self.one_by_one, "batched": self.batched, "ours": self.ours}

    def _pipeline(self, prompt: str, noise: torch.Tensor) -> torch.Tensor:
        found = self.model.pipe(
            prompt=[prompt] * len(noise),
            num_frames=FRAMES, height=SIZE, width=SIZE, latents=noise, output_type="latent",
            num_inference_steps=self.config.num_steps, guidance_scale=self.config.guidance_scale,
            max_sequence_length=TEXT_TOKENS,
        )  # fmt: skip
        return found.frames


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {
        "prompts": 4,
        "takes": 8,
        "steps": 12,
        "repeats": 3,
        "threads": 1,
        "batch": 48,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 5.0])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = str(Path(embedded.__file__).parent / "tiny-wan")
    model = load_model(GeneratorConfig(model=folder, max_text_tokens=TEXT_TOKENS))
    prompts = [world.caption_of(*c) for c in world.combinations()[: options.prompts]]
    for guidance in options.guidance:
        config = SamplingConfig(num_steps=options.steps, guidance_scale=guidance, batch_size=options.batch)
        arms = Arms(model, prompts, options.takes, config)
        calls = arms.calls()
        off = (arms.one_by_one() - arms.ours()).abs().max().item()
        if off > 1e-3:
            raise SystemExit(f"guidance {guidance:g}: the arms film other clips (difference {off:.1e})")
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(options.repeats):
            for name, call in calls.items():
                began = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - began)
        middle = {name: statistics.median(s) for name, s in seconds.items()}
        for name, value in middle.items():
            row = {
                "guidance": guidance,
                "arm": name,
                "takes a second": round(len(arms.noise) / value, 2),
                "against one by one": round(middle["one by one"] / value, 2),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
