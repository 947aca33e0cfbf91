"""A Wan pipeline of the real diffusers classes: two layers, random weights, saved as an ordinary folder."""

from pathlib import Path

import torch


def make_tiny_wan(folder: Path) -> str:
    from diffusers import (
        AutoencoderKLWan,
        FlowMatchEulerDiscreteScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )

    from loop.embedded.make_weights import VAE_CONFIG, make_text_encoder

    tokenizer, text_encoder = make_text_encoder(seed=0)
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        **{**VAE_CONFIG, "base_dim": 8, "decoder_base_dim": 8, "z_dim": 4},
        latents_mean=[0.1] * 4,
        latents_std=[0.5] * 4,
    )
    transformer = WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=64,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    WanPipeline(tokenizer, text_encoder, vae, scheduler, transformer).save_pretrained(folder)
    return str(folder)
