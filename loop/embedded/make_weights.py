"""Makes the weights of the embedded default from nothing: autoencoder and generator.

The judge's are made by loop/embedded/make_judge.py.

Runs unattended on two cores: `python -m loop.embedded.make_weights OUT [vae|generator]…`.
docs/embedded.md says how long each part took and on what machine.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from generator.losses import frame_errors
from generator.parametrisation import FlowMatching, shift_sigma
from loop.embedded import world

SHIFT = 3.0  # the schedule of the larger Wan models: most of the steps at high noise, where motion is decided

VAE_CONFIG: dict[str, Any] = {
    # The residual, patchified form that Wan 2.2 uses: its shortcuts carry pixels through from the
    # first step on, so that it learns in minutes where the plain form had learned only the background.
    "base_dim": 16,
    "decoder_base_dim": 16,
    "z_dim": 16,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [True, True],
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 8,
    "scale_factor_temporal": 4,
}


def random_clips(num: int, rng: np.random.Generator) -> tuple[torch.Tensor, list[world.Scene]]:
    """Freshly rendered clips of training captions, float32 [num, 3, T, H, W] in [−1, 1], and their scenes."""
    combos = [c for c in world.combinations() if world.part_of(*c) == "train"]
    scenes = [world.draw_scene(*combos[rng.integers(len(combos))], rng) for _ in range(num)]
    frames = np.stack([world.render(s) for s in scenes])
    return torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float() / 127.5 - 1, scenes


def cosine(step: int, num_steps: int, floor: float = 0.02) -> float:
    """Learning-rate factor, from 1 down to `floor`."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / num_steps))


def train_vae(out: Path, num_steps: int = 3000, batch: int = 8, lr: float = 3e-3, seed: int = 0) -> None:
    """Trains an `AutoencoderKLWan` on rendered clips and saves it with its latent statistics.

    A run that was cut off goes on from its last `vae-partial`, without Adam's moments, so with a new warm-up.
    """
    from diffusers import AutoencoderKLWan

    torch.manual_seed(seed)
    vae, first = AutoencoderKLWan(**VAE_CONFIG, latents_mean=[0.0] * 16, latents_std=[1.0] * 16), 0
    if (out / "vae-partial" / "step").exists():
        vae, first = (
            AutoencoderKLWan.from_pretrained(out / "vae-partial"),
            int((out / "vae-partial" / "step").read_text()),
        )
    rng = np.random.default_rng([seed, first])
    opt = torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    start = time.time()
    for step in range(first, num_steps):
        for group in opt.param_groups:
            group["lr"] = lr * cosine(step, num_steps) * min(1.0, (step - first + 1) / 50)
        x, _ = random_clips(batch, rng)
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
        # The shape covers a tenth of the picture: unweighted, the background is all there is to learn.
        weight = 1 + 9 * ((x - x[:, :, :, :1, :1]).abs().amax(1, keepdim=True) > 0.2).float()
        kl_per_value = posterior.kl().mean() / posterior.mean[0].numel()
        loss = ((y - x) ** 2 * weight).mean() + 0.3 * (y - x).abs().mean() + 3e-4 * kl_per_value
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        opt.step()
        if step % 100 == 0 or step == num_steps - 1:
            psnr = 10 * torch.log10(4 / ((y - x) ** 2).mean()).item()
            print(
                f"vae {step} loss {loss.item():.4f} psnr {psnr:.2f} kl {kl_per_value.item():.2f} "
                f"{time.time() - start:.0f} s",
                flush=True,
            )
        if step % 500 == 499:
            vae.save_pretrained(out / "vae-partial")
            (out / "vae-partial" / "step").write_text(str(step + 1))
    with torch.no_grad():
        latents = torch.cat([vae.encode(random_clips(32, rng)[0]).latent_dist.mode() for _ in range(16)])
    vae.register_to_config(
        latents_mean=[round(v, 5) for v in latents.mean(dim=(0, 2, 3, 4)).tolist()],
        latents_std=[round(v, 5) for v in latents.std(dim=(0, 2, 3, 4)).tolist()],
    )
    vae.save_pretrained(out / "vae")


TEXT_WIDTH = 64
MAX_TEXT_TOKENS = 8  # five words and the end mark fit
TRANSFORMER_CONFIG: dict[str, Any] = {
    "patch_size": (1, 1, 1),
    "num_attention_heads": 4,
    "attention_head_dim": 24,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 64,
    "ffn_dim": 192,
    "num_layers": 3,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 64,
}


def make_text_encoder(seed: int) -> tuple[Any, Any]:
    """A word-level tokenizer of the grammar and a small `UMT5EncoderModel` (trained with the transformer).

    One layer: with two, words lean on their neighbours and captions that were never seen suffer for it.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    words = ["<pad>", "</s>", "<unk>", "a", "moves", *world.COLOURS, *world.SHAPES, *world.DIRECTIONS]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    torch.manual_seed(seed)
    config = UMT5Config(
        vocab_size=len(words),
        d_model=TEXT_WIDTH,
        d_kv=16,
        d_ff=128,
        num_layers=1,
        num_heads=4,
        dropout_rate=0.0,
    )
    return tokenizer, UMT5EncoderModel(config)


def train_generator(
    out: Path, num_steps: int = 540, batch: int = 32, lr: float = 2e-3, seed: int = 0
) -> None:
    """Trains a `WanTransformer3DModel` with its text encoder on training captions, too briefly on purpose.

    The rate falls to nearly 0: a base cut off at a constant rate gains more from any quiet fine-tuning than
    it can from preferences, and every comparison of methods would measure that. Saves the pipeline as
    out/base.
    """
    from diffusers import (
        AutoencoderKLWan,
        FlowMatchEulerDiscreteScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )

    vae = AutoencoderKLWan.from_pretrained(out / "vae").eval().requires_grad_(False)
    tokenizer, text_encoder = make_text_encoder(seed)
    torch.manual_seed(seed + 1)
    transformer = WanTransformer3DModel(**TRANSFORMER_CONFIG)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    pipe = WanPipeline(tokenizer, text_encoder, vae, scheduler, transformer)
    rng = np.random.default_rng(seed + 1)
    generator = torch.Generator().manual_seed(seed + 1)
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    pool_x, pool_ids = [], []
    start = time.time()
    with torch.no_grad():
        for _ in range(48):
            clips, scenes = random_clips(32, rng)
            pool_x.append((vae.encode(clips).latent_dist.mode() - mean) / std)
            text = tokenizer([s.caption for s in scenes], padding="max_length", max_length=MAX_TEXT_TOKENS)
            pool_ids.append(torch.tensor(text["input_ids"]))
    x_all, ids_all = torch.cat(pool_x), torch.cat(pool_ids)
    print(f"generator: {len(x_all)} clips encoded, {time.time() - start:.0f} s", flush=True)
    empty = torch.tensor(tokenizer("", padding="max_length", max_length=MAX_TEXT_TOKENS)["input_ids"])
    parameters = [*transformer.parameters(), *text_encoder.parameters()]
    opt = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    start = time.time()
    for step in range(num_steps):
        for group in opt.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 100) * cosine(step, num_steps)
        rows = torch.randint(len(x_all), (batch,), generator=generator)
        x, ids = x_all[rows], ids_all[rows].clone()
        ids[torch.rand(batch, generator=generator) < 0.1] = empty  # for classifier-free guidance
        mask = ids.ne(0)
        text = text_encoder(ids, mask).last_hidden_state * mask[..., None]  # the pipeline zeroes padding
        sigma = shift_sigma(torch.sigmoid(torch.randn(batch, generator=generator)), SHIFT)
        eps = torch.randn(x.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            v = transformer(FlowMatching.noise(x, eps, sigma), sigma * 1000, text, return_dict=False)[0]
        loss = frame_errors(v, FlowMatching.target(x, eps, sigma)).mean()
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        opt.step()
        if step % 50 == 49:
            print(f"generator {step + 1} loss {loss.item():.4f} {time.time() - start:.0f} s", flush=True)
    pipe.save_pretrained(out / "base")
    _forget_path(out / "base" / "vae" / "config.json")


def _forget_path(config: Path) -> None:
    """Where this machine kept the autoencoder is no part of the model."""
    kept = {key: value for key, value in json.loads(config.read_text()).items() if key != "_name_or_path"}
    config.write_text(json.dumps(kept, indent=2) + "\n")


def main(argv: list[str]) -> None:
    out = Path(argv[0])
    out.mkdir(parents=True, exist_ok=True)
    for part in argv[1:] or ["vae", "generator"]:
        {"vae": train_vae, "generator": train_generator}[part](out)


if __name__ == "__main__":
    main(sys.argv[1:])
