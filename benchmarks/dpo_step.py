"""Time and memory of a preference step, ours against two common arrangements, as ratios in one run.

    python benchmarks/dpo_step.py [--width 256] [--layers 4] [--weights lora full] [--epochs 8] [--draws 2]
    python benchmarks/dpo_step.py --wan-1.3b --dtype bfloat16 --activation-checkpointing --peak-tflops 989

Arms, on the same model, pairs and draws:
  common    winner and loser in one forward, the reference's forward in every step (adapter off, or a copy)
  realdpo   N losers a winner, the winner computed again for each of them, by policy and reference
  ours-1    winner and loser in one forward, the reference's errors computed once for a fixed set of draws
  ours-n    the same with N losers a winner, the winner's forward once

Seconds are for one pair and step, the median of repeats taken in turns; ours is charged for its reference
forwards at draws/epochs of a step each. `forwards` is the same ratio counted in forwards before measuring
(forward 1, backward 1 with a LoRA and 2 with full weights). `needed_tflop` are the operations that the arm's
method needs for a pair (`needed`), `utilisation` is what of the device's peak they come to. `peak_gib` is an
arm's own on a GPU, and on a CPU that of the process so far. Prints one JSON row an arm.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from generator.condition import Condition
from generator.config import GeneratorConfig, LoraConfig, UpdateConfig
from generator.data import PairData
from generator.draws import Draw, noise_and_levels
from generator.losses import PairErrors, frame_errors, preference_loss
from generator.models.base import VideoModel, load_model
from generator.reference_errors import ReferenceErrors
from generator.step import autocast, pair_errors

# Wan2.1-1.3B, 49 frames of 480×832 in its latents, its text embeddings
WAN: dict[str, int] = {"width": 1536, "layers": 30, "head_dim": 128, "ffn": 8960, "text_dim": 4096}
WAN_SHAPE, WAN_TOKENS = (16, 13, 60, 104), 512


def tiny_pipeline(
    folder: Path,
    width: int,
    layers: int,
    head_dim: int = 32,
    ffn: int | None = None,
    text_dim: int | None = None,
) -> str:
    """A Wan pipeline with random weights whose transformer has `layers` blocks of `width`."""
    from diffusers import WanPipeline, WanTransformer3DModel

    import loop.embedded as embedded

    pipe = WanPipeline.from_pretrained(Path(embedded.__file__).parent / "tiny-wan")
    config = dict(pipe.transformer.config)
    torch.manual_seed(0)
    config |= {
        "num_layers": layers,
        "num_attention_heads": width // head_dim,
        "attention_head_dim": head_dim,
        "ffn_dim": ffn or 4 * width,
        "text_dim": text_dim or config["text_dim"],
    }
    pipe.transformer = WanTransformer3DModel.from_config(config)
    pipe.save_pretrained(folder)
    return str(folder)


def make_pairs(num: int, losers: int, shape: tuple[int, ...], text: Condition) -> PairData:
    generator = torch.Generator().manual_seed(0)
    winners = torch.randn(num, *shape, generator=generator).repeat_interleave(losers, 0)
    return PairData(
        ids=[str(i) for i in range(num * losers)],
        prompt_ids=["p"] * (num * losers),
        winners=winners,
        losers=torch.randn(num * losers, *shape, generator=generator),
        conditions=text,
        condition_rows=[0] * (num * losers),
        signs=torch.ones(num * losers, shape[1], dtype=torch.int8),
        weights=torch.ones(num * losers),
        winner_ids=[str(i // losers) for i in range(num * losers)],
    )


class Arms:
    """Each method is one step on the same `groups` of pairs."""

    def __init__(self, model: VideoModel, pairs: PairData, losers: int, config: UpdateConfig) -> None:
        self.model, self.pairs, self.losers, self.config = model, pairs, losers, config
        rows = range(len(pairs.ids))
        self.singles = [[i] for i in rows]
        self.groups = pairs.groups(rows, losers)
        self.known = ReferenceErrors(1, ())
        self.parameters = model.prepare_training(config.lora, None, "parent", 0)
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-6)
        self.number = 0

    def _learn(self, errors: PairErrors, rows: list[int]) -> None:
        signs, weights = (t[rows].to(self.model.device) for t in (self.pairs.signs, self.pairs.weights))
        loss = preference_loss(errors, signs, weights, beta=500, reduction="clip")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()

    def common(self) -> None:
        rows = list(range(len(self.pairs.ids)))
        draws = [Draw(i, self.number) for i in rows]
        self._learn(
            pair_errors(self.model, self.pairs, self.singles, draws, self.config, 0, ReferenceErrors(0, ())),
            rows,
        )

    def realdpo(self) -> None:
        """Four forwards for each loser, the winner's among them every time."""
        parts = []
        for n in range(self.losers):
            rows = [g[n] for g in self.groups]
            draws = [Draw(k, self.number) for k in range(len(self.groups))]
            eps, sigma = noise_and_levels(
                draws, tuple(self.pairs.winners.shape[1:]), self.config, self.model.shift, 0
            )
            found = [
                self._errors(clips[rows], eps, sigma, rows)
                for clips in (self.pairs.winners, self.pairs.losers)
            ]
            (w, rw), (lo, rl) = found
            parts.append(PairErrors(w, lo, rw, rl))
        self._learn(PairErrors.cat(parts), [g[n] for n in range(self.losers) for g in self.groups])

    def _errors(self, x: torch.Tensor, eps: torch.Tensor, sigma: torch.Tensor, rows: list[int]) -> Any:
        model, form = self.model, self.model.parametrisation
        x, eps, sigma = (t.to(model.device) for t in (x, eps, sigma))
        condition = self.pairs.condition(rows).to(model.device)
        noisy, target = form.noise(x, eps, sigma), form.target(x, eps, sigma)
        with autocast(model, self.config):
            reference = frame_errors(model.predict_reference(noisy, sigma, condition), target)
            return frame_errors(model.predict(noisy, sigma, condition), target), reference

    def ours(self, groups: list[list[int]]) -> None:
        draws = [Draw(k, 0) for k in range(len(groups))]
        rows = [i for g in groups for i in g]
        self._learn(pair_errors(self.model, self.pairs, groups, draws, self.config, 0, self.known, 1), rows)

    def calls(self) -> dict[str, tuple[Callable[[], None], Callable[[], None] | None]]:
        """Each arm's step, and what it computes beforehand."""
        return {
            "common": (self.common, None),
            "realdpo": (self.realdpo, None),
            "ours-1": (lambda: self.ours(self.singles), lambda: self.precompute(self.singles)),
            "ours-n": (lambda: self.ours(self.groups), lambda: self.precompute(self.groups)),
        }

    def precompute(self, groups: list[list[int]]) -> None:
        """The reference's errors of one draw of every pair, for `ours`."""
        self.known = ReferenceErrors(1, ())
        draws = [Draw(k, 0) for k in range(len(groups))]
        with torch.no_grad():
            first = [g[0] for g in groups]
            eps, sigma = noise_and_levels(
                draws, tuple(self.pairs.winners.shape[1:]), self.config, self.model.shift, 0, 1
            )
            of = torch.tensor([k for k, g in enumerate(groups) for _ in g])
            rows = [i for g in groups for i in g]
            everyone = torch.cat([torch.arange(len(groups)), of])
            x = torch.cat([self.pairs.winners[first], self.pairs.losers[rows]])
            device, form = self.model.device, self.model.parametrisation
            x, eps, sigma = x.to(device), eps[everyone].to(device), sigma[everyone].to(device)
            noisy = form.noise(x, eps, sigma)
            with autocast(self.model, self.config):
                prediction = self.model.predict_reference(
                    noisy, sigma, self.pairs.condition(first).to(device).rows(everyone.to(device))
                )
            errors = frame_errors(prediction, form.target(x, eps, sigma))
        self.known.add(draws, [len(g) for g in groups], errors[: len(groups)][of], errors[len(groups) :])


def flops(
    model: VideoModel, shape: tuple[int, ...], condition: Condition, dtype: torch.dtype
) -> tuple[int, int]:
    """Operations of one clip's forward: (matrix products and convolutions, attention)."""
    x = torch.zeros(1, *shape, device=model.device)
    mixed = torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32)
    with torch.no_grad(), mixed, FlopCounterMode(display=False) as counter:
        model.predict_reference(x, torch.full((1,), 0.5, device=model.device), condition)
    by_op = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    attention = sum(count for op, count in by_op.items() if "attention" in op)
    return sum(by_op.values()) - attention, attention


def needed(arm: str, products: int, attention: int, lora: bool, losers: int, share: float) -> float:
    """Operations that one pair and step need.

    A backward takes the gradients of the activations and, with full weights, those of the weights: as much
    each as the products forward; attention takes twice its forward either way. What is computed twice
    (checkpointing, flash attention's scores) counts once, and a LoRA's own products do not count.
    """
    clips = {"common": 2.0, "realdpo": 2.0, "ours-1": 2.0, "ours-n": (1 + losers) / losers}[arm]
    reference = share if arm.startswith("ours") else 1.0
    backward = products * (1 if lora else 2) + 2 * attention
    return clips * ((1 + reference) * (products + attention) + backward)


def seconds(call: Callable[[], None], cuda: bool) -> float:
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def counted(arm: str, backward: int, losers: int, share: float) -> float:
    """Forwards of one pair and step, a backward counted as `backward` of them."""
    clips = {"common": 2.0, "realdpo": 2.0, "ours-1": 2.0, "ours-n": (1 + losers) / losers}[arm]
    return clips * (1 + backward + (share if arm.startswith("ours") else 1))


def build(kind: str, options: argparse.Namespace, cuda: bool) -> tuple[Arms, int, int]:
    """The arms on one model, and the operations of a clip's forward (`flops`)."""
    with tempfile.TemporaryDirectory() as folder:
        size = WAN if options.wan else {"width": options.width, "layers": options.layers}
        path = tiny_pipeline(Path(folder), **size)
        # with a LoRA the base is held in the dtype of the forward
        held = options.dtype if kind == "lora" else "float32"
        config = GeneratorConfig(model=path, max_text_tokens=8, dtype=held)
        model = load_model(config, device="cuda" if cuda else "cpu")
    shape = WAN_SHAPE if options.wan else tuple(options.shape)
    text = model.encode_prompts(["a red ring moves left"]).to("cpu")
    if options.wan:
        text = text.with_tensors(text=torch.randn(1, WAN_TOKENS, WAN["text_dim"], dtype=text["text"].dtype))
    model.release_encoders()
    pairs = make_pairs(options.winners, options.losers, shape, text)
    lora = LoraConfig(rank=16) if kind == "lora" else None
    settings = UpdateConfig(lora=lora, losers_per_winner=options.losers, dtype=options.dtype)
    arms = Arms(model, pairs, options.losers, settings)
    if options.activation_checkpointing:
        for transformer in model.transformers:
            transformer.enable_gradient_checkpointing()
    return arms, *flops(model, shape, text.to(model.device), getattr(torch, options.dtype))


def take_turns(
    arms: Arms, repeats: int, share: float, cuda: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds a pair of every arm, and its peak memory in GiB (on a CPU the process's so far)."""
    calls = arms.calls()
    times: dict[str, list[float]] = {name: [] for name in calls}
    peaks: dict[str, float] = {}
    for repeat in range(repeats + 1):
        for name, (call, before) in calls.items():
            gc.collect()
            extra = seconds(before, cuda) if before else 0.0
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            spent = seconds(call, cuda) + share * extra
            if repeat:  # the first warms up
                times[name].append(spent)
            peaks[name] = (
                torch.cuda.max_memory_allocated() / 2**30
                if cuda
                else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            )
    return {name: statistics.median(t) / len(arms.pairs.ids) for name, t in times.items()}, peaks


def measure(kind: str, options: argparse.Namespace, cuda: bool, share: float) -> None:
    """Prints one row an arm."""
    arms, products, attention = build(kind, options, cuda)
    medians, peaks = take_turns(arms, options.repeats, share, cuda)
    lora = kind == "lora"
    forwards = {name: counted(name, 1 if lora else 2, options.losers, share) for name in medians}
    for name, value in medians.items():
        row: dict[str, Any] = {"weights": kind, "arm": name, "seconds_per_pair": round(value, 5)}
        for other in ("common", "realdpo"):
            row[f"vs_{other}"] = round(value / medians[other], 3)
            row[f"vs_{other}_forwards"] = round(forwards[name] / forwards[other], 3)
        tflop = needed(name, products, attention, lora, options.losers, share) / 1e12
        row["needed_tflop"] = round(tflop, 6)
        if options.peak_tflops:
            row["utilisation"] = round(tflop / value / options.peak_tflops, 3)
        print(json.dumps({**row, "peak_gib": round(peaks[name], 3)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--wan-1.3b", dest="wan", action="store_true", help="that shape, 49 frames of 480x832"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the forward")
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--peak-tflops", type=float, help="of the device in this dtype")
    parser.add_argument("--width", type=int, default=256, help="of the transformer, a multiple of 32")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--shape", type=int, nargs=4, default=[16, 5, 8, 8], metavar=("C", "T", "H", "W"))
    parser.add_argument("--winners", type=int, default=4)
    parser.add_argument("--losers", type=int, default=3)
    parser.add_argument("--weights", nargs="+", choices=["lora", "full"], default=["lora", "full"])
    parser.add_argument("--epochs", type=int, default=8, help="times that a pair is seen in an update")
    parser.add_argument("--draws", type=int, default=2, help="update.reference_draws")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cuda = torch.cuda.is_available()
    share = options.draws / options.epochs
    for kind in options.weights:
        measure(kind, options, cuda, share)


if __name__ == "__main__":
    main()
