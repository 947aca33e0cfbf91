"""Tiny pipelines of every family and variant: the real diffusers classes with random weights, saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from generator.config import GeneratorConfig
from generator.sampling import noise_for
from tests.tiny_wan import make_tiny_wan

NUM_FRAMES, SIZE = 9, 32
TEXT = 32  # the width of T5 and Llama


@dataclass(frozen=True)
class Variant:
    """A pipeline to build, how to load it, and how its own `__call__` is asked for latents."""

    name: str
    build: Callable[[Path], Any]
    config: dict[str, Any]
    call: dict[str, Any] = field(default_factory=dict)
    guidance: str = "guidance_scale"
    first_frame: bool = False
    eta_one_is_fresh: bool = True

    def config_of(self, folder: str) -> GeneratorConfig:
        return GeneratorConfig(model=folder, **self.config)


def tokenizer_and(kind: str) -> tuple[Any, Any]:
    """The word-level tokenizer of the tests and a `kind` of text encoder of width TEXT."""
    import transformers

    from loop.embedded.make_weights import make_text_encoder

    tokenizer, _ = make_text_encoder(seed=0)
    torch.manual_seed(1)
    words, sizes = len(tokenizer), {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 1}
    if kind == "t5":
        config = transformers.T5Config(
            vocab_size=words, d_model=TEXT, d_kv=8, d_ff=TEXT, num_layers=1, num_heads=4, dropout_rate=0.0
        )
        return tokenizer, transformers.T5EncoderModel(config)
    more = {"hidden_size": TEXT, "intermediate_size": TEXT, "num_hidden_layers": 3, "num_attention_heads": 4}
    if kind == "llama":
        return tokenizer, transformers.LlamaModel(transformers.LlamaConfig(**sizes, **more))
    return tokenizer, transformers.CLIPTextModel(
        transformers.CLIPTextConfig(**sizes, **more, max_position_embeddings=77)
    )


def without_spread(vae: Any) -> Any:
    """An autoencoder whose posterior has no variance, where a pipeline samples it and we take its mode."""
    convolution, num_means = vae.encoder.conv_out.conv, vae.config.latent_channels
    with torch.no_grad():
        convolution.weight[num_means:] = 0
        convolution.bias[num_means:] = -30
    return vae


# Wan ----------------------------------------------------------------------------------------


def make_wan(
    folder: Path,
    *,
    unipc: bool = False,
    two_experts: bool = False,
    image: str | None = None,
    expand: bool = False,
) -> None:
    from diffusers import (
        UniPCMultistepScheduler,
        WanImageToVideoPipeline,
        WanPipeline,
        WanTransformer3DModel,
    )

    make_tiny_wan(folder)
    pipe = WanPipeline.from_pretrained(folder)
    parts = dict(pipe.components)
    config = {**pipe.transformer.config}
    if unipc:
        parts["scheduler"] = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        )
    if image:
        config["in_channels"] = 4 + 4 + 4  # noise, a mask of four video frames, the first frame's latents
    if image == "clip":
        config |= {"image_dim": TEXT, "added_kv_proj_dim": 24}
        parts |= _clip_vision()
    if expand:
        config["patch_size"] = (1, 2, 2)
    kind = WanImageToVideoPipeline if image else WanPipeline
    if not image:
        parts = {k: v for k, v in parts.items() if not k.startswith("image")}
    torch.manual_seed(2)
    parts["transformer"] = WanTransformer3DModel.from_config(config)
    if two_experts:
        parts["transformer_2"] = WanTransformer3DModel.from_config(config)
    kind(**parts, boundary_ratio=0.875 if two_experts else None, expand_timesteps=expand).save_pretrained(
        folder
    )


def _clip_vision() -> dict[str, Any]:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=TEXT, intermediate_size=TEXT, num_hidden_layers=2, num_attention_heads=4,
        image_size=SIZE, patch_size=16,
    )  # fmt: skip
    sizes = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    return {"image_encoder": CLIPVisionModel(config), "image_processor": CLIPImageProcessor(**sizes)}


# CogVideoX ----------------------------------------------------------------------------------


def make_cogvideox(
    folder: Path,
    *,
    dpm: bool = False,
    zero_snr: bool = False,
    image: bool = False,
    prediction: str = "v_prediction",
) -> None:
    import diffusers

    tokenizer, text_encoder = tokenizer_and("t5")
    torch.manual_seed(2)
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        sample_height=SIZE, sample_width=SIZE,
    )  # fmt: skip
    rotary = zero_snr or image
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=8 if image else 4, out_channels=4,
        time_embed_dim=8, text_embed_dim=TEXT, num_layers=2, sample_width=4, sample_height=4,
        sample_frames=NUM_FRAMES, patch_size=2, max_text_seq_length=16,
        use_rotary_positional_embeddings=rotary, use_learned_positional_embeddings=image,
    )  # fmt: skip
    settings = {
        "prediction_type": prediction,
        "rescale_betas_zero_snr": zero_snr,
        "timestep_spacing": "trailing" if zero_snr else "leading",
        "snr_shift_scale": 1.0 if zero_snr else 3.0,
    }
    scheduler = (diffusers.CogVideoXDPMScheduler if dpm else diffusers.CogVideoXDDIMScheduler)(**settings)
    kind = diffusers.CogVideoXImageToVideoPipeline if image else diffusers.CogVideoXPipeline
    kind(tokenizer, text_encoder, without_spread(vae), transformer, scheduler).save_pretrained(folder)


# LTX-Video ----------------------------------------------------------------------------------


def make_ltx(folder: Path, *, image: bool = False, timestep_conditioning: bool = False) -> None:
    import diffusers

    tokenizer, text_encoder = tokenizer_and("t5")
    torch.manual_seed(2)
    four, five = (8, 8, 8, 8), (1, 1, 1, 1, 1)
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=four, decoder_block_out_channels=four,
        layers_per_block=five, decoder_layers_per_block=five,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=2, patch_size_t=1, scaling_factor=1.0 if image else 0.8,  # which only one pipeline heeds
        timestep_conditioning=timestep_conditioning, decoder_inject_noise=(False,) * 5,
    )  # fmt: skip
    vae.latents_mean.copy_(torch.linspace(-0.2, 0.3, 8))
    vae.latents_std.copy_(torch.linspace(0.5, 1.5, 8))
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
        num_layers=2, caption_channels=TEXT,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=16,
        max_image_seq_len=64, shift_terminal=0.1,
    )  # fmt: skip
    kind = diffusers.LTXImageToVideoPipeline if image else diffusers.LTXPipeline
    parts = {"scheduler": scheduler, "vae": without_spread(vae), "text_encoder": text_encoder}
    kind(**parts, tokenizer=tokenizer, transformer=transformer).save_pretrained(folder)


# HunyuanVideo -------------------------------------------------------------------------------


def make_hunyuan(folder: Path, *, guidance_embeds: bool = True) -> None:
    import diffusers

    tokenizer, text_encoder = tokenizer_and("llama")
    tokenizer_2, text_encoder_2 = tokenizer_and("clip")
    torch.manual_seed(2)
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=2, guidance_embeds=guidance_embeds,
        text_embed_dim=TEXT, pooled_projection_dim=TEXT, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    diffusers.HunyuanVideoPipeline(
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
    ).save_pretrained(folder)


# All of them --------------------------------------------------------------------------------


def _variants() -> list[Variant]:
    wan = {"family": "wan", "max_text_tokens": 8}
    cog = {"family": "cogvideox", "max_text_tokens": 16}
    ltx = {"family": "ltx", "max_text_tokens": 8, "frame_rate": 8.0}
    hunyuan = {"family": "hunyuan", "max_text_tokens": 16, "embedded_guidance": 4.0}

    def of(make: Callable[..., Any], **settings: Any) -> Callable[[Path], Any]:
        return lambda folder: make(folder, **settings)

    return [
        Variant("wan", of(make_wan), wan),
        Variant("wan-unipc", of(make_wan, unipc=True), wan),
        Variant("wan-2.1-i2v", of(make_wan, image="clip"), wan | {"max_text_tokens": 512}, first_frame=True),
        Variant("wan-2.2", of(make_wan, two_experts=True), wan),
        Variant("wan-2.2-i2v", of(make_wan, two_experts=True, image="latents"), wan, first_frame=True),
        Variant("wan-2.2-5b", of(make_wan, expand=True), wan),
        Variant("wan-2.2-5b-i2v", of(make_wan, expand=True), wan, first_frame=True),
        Variant("cogvideox-ddim", of(make_cogvideox), cog, eta_one_is_fresh=False),
        Variant("cogvideox-dpm", of(make_cogvideox, dpm=True, zero_snr=True), cog, eta_one_is_fresh=False),
        Variant(
            "cogvideox-i2v",
            of(make_cogvideox, image=True, zero_snr=True),
            cog,
            first_frame=True,
            eta_one_is_fresh=False,
        ),
        Variant("cogvideox-epsilon", of(make_cogvideox, prediction="epsilon"), cog, eta_one_is_fresh=False),
        Variant("ltx", of(make_ltx), ltx, {"frame_rate": 8}),
        Variant("ltx-i2v", of(make_ltx, image=True), ltx, {"frame_rate": 8}, first_frame=True),
        Variant("hunyuan", of(make_hunyuan), hunyuan, {"guidance_scale": 4.0}, guidance="true_cfg_scale"),
    ]


VARIANTS = {v.name: v for v in _variants()}


def first_frame(seed: int = 0) -> tuple[torch.Tensor, Image.Image]:
    """A frame of noise, float32 [1, 3, SIZE, SIZE] in [−1, 1], and the same as an image."""
    pixels = torch.randint(0, 256, (3, SIZE, SIZE), generator=torch.Generator().manual_seed(seed))
    picture = Image.fromarray(pixels.to(torch.uint8).permute(1, 2, 0).numpy())
    return pixels[None] / 127.5 - 1, picture


def starting_noise(model: Any, variant: Variant, seeds: list[int]) -> torch.Tensor:
    """The noise [B, C, T', H', W'] that the pipeline draws from generators of these seeds."""
    channels, *positions = model.latent_shape(NUM_FRAMES, SIZE, SIZE)
    shape = (channels, *positions)
    if variant.name == "ltx-i2v":  # which first draws from the posterior of the first frame
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        for generator in generators:
            torch.randn((channels, 1, *positions[1:]), generator=generator)
        return torch.stack([torch.randn(shape, generator=g) for g in generators])
    if not variant.name.startswith("cogvideox"):
        return noise_for(seeds, shape)
    return noise_for(seeds, (positions[0], channels, *positions[1:])).transpose(1, 2)


def pipeline_of(pipe: Any, variant: Variant) -> Any:
    """The pipeline whose `__call__` is the reference; text weights may also film from a frame."""
    import diffusers

    if variant.name != "wan-2.2-5b-i2v":
        return pipe
    pipe = diffusers.WanImageToVideoPipeline(**pipe.components, expand_timesteps=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ask(
    pipe: Any,
    model: Any,
    variant: Variant,
    prompts: list[str],
    seeds: list[int],
    guidance: float,
    **more: Any,
) -> torch.Tensor:
    """What the pipeline itself makes of prompts and seeds: latents, or pixels in [0, 1] for output_type "pt".

    Both with the frames third: [B, C, T, H, W].
    """
    pipe, num_tokens = pipeline_of(pipe, variant), variant.config["max_text_tokens"]
    arguments = {
        "prompt": prompts, "negative_prompt": "", "height": SIZE, "width": SIZE, "num_frames": NUM_FRAMES,
        "max_sequence_length": num_tokens, "output_type": "latent", variant.guidance: guidance,
        "generator": [torch.Generator().manual_seed(s) for s in seeds], **variant.call, **more,
    }  # fmt: skip
    if variant.first_frame:
        picture = first_frame()[1]
        arguments["image"] = picture if variant.name.startswith("wan") else [picture] * len(prompts)
        if variant.name == "cogvideox-i2v":
            arguments["latents"] = starting_noise(model, variant, seeds).transpose(1, 2)
    if variant.name == "ltx-i2v":
        arguments["negative_prompt"] = [""] * len(prompts)
    made = pipe(**arguments).frames
    if arguments["output_type"] != "latent":
        return made.transpose(1, 2)
    if variant.name.startswith("ltx"):
        _, *positions = model.latent_shape(NUM_FRAMES, SIZE, SIZE)
        return pipe._unpack_latents(made, *positions)
    return made.transpose(1, 2) if variant.name.startswith("cogvideox") else made
