"""Sparse causal attention against masked dense attention, as a function and inside real transformers."""

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F

from generator.attention import sparse_causal_attention, use_sparse_causal
from generator.config import GeneratorConfig
from generator.models.base import load_model
from tests.tiny_wan import make_tiny_wan

FRAMES, TOKENS = 5, 6


def allowed(num_frames: int, tokens: int, num_text: int, *, text_first: bool, own: bool) -> torch.Tensor:
    """bool [L, L]: which key a query may see, written out pair by pair."""
    kinds = [("video", i) for i in range(num_frames) for _ in range(tokens)]
    text = [("text", 0)] * num_text
    places = text + kinds if text_first else kinds + text
    seen = torch.zeros(len(places), len(places), dtype=torch.bool)
    for q, (q_kind, i) in enumerate(places):
        for k, (k_kind, j) in enumerate(places):
            frames = {0, max(i - 1, 0)} | ({i} if own else set())
            seen[q, k] = q_kind == "text" or k_kind == "text" or j in frames
    return seen


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("num_text", "text_first"), [(0, False), (4, False), (4, True)])
@pytest.mark.parametrize("num_frames", [1, 2, FRAMES])
def test_it_equals_masked_dense_attention(num_frames, num_text, text_first, own):
    generator = torch.Generator().manual_seed(0)
    length = num_frames * TOKENS + num_text
    q, k, v = (torch.randn(2, 3, length, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    q.requires_grad_(True)
    hidden = torch.ones(2, 1, 1, length, dtype=torch.bool)
    if num_text:
        hidden[1, ..., 0 if text_first else -1] = False  # the second clip's text is padded
    got = sparse_causal_attention(q, k, v, num_frames, num_text, text_first=text_first, own=own, mask=hidden)
    may = allowed(num_frames, TOKENS, num_text, text_first=text_first, own=own) & hidden
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=may)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    weight = torch.randn(want.shape, generator=generator, dtype=torch.float64)
    mine, theirs = (torch.autograd.grad((o * weight).sum(), q)[0] for o in (got, want))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_tokens_that_are_no_frames_are_refused():
    q = torch.randn(1, 1, 11, 4)
    with pytest.raises(ValueError, match="11 video tokens do not divide into 5"):
        sparse_causal_attention(q, q, q, 5)
    with pytest.raises(ValueError, match="masks over keys"):
        sparse_causal_attention(q, q, q, 11, mask=torch.ones(1, 1, 11, 11, dtype=torch.bool))


def wan():
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        text_dim=8, freq_dim=16, ffn_dim=32, num_layers=2, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    x = torch.randn(2, 4, FRAMES, 4, 6)
    return model, {"hidden_states": x, "encoder_hidden_states": torch.randn(2, 7, 8)}, 6


def cogvideox():
    from diffusers import CogVideoXTransformer3DModel

    model = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8,
        text_embed_dim=8, num_layers=2, sample_width=6, sample_height=4, sample_frames=17,
        max_text_seq_length=7,
    )  # fmt: skip
    x = torch.randn(2, FRAMES, 4, 4, 6)
    return model, {"hidden_states": x, "encoder_hidden_states": torch.randn(2, 7, 8)}, 6


def ltx():
    from diffusers import LTXVideoTransformer3DModel

    model = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=2, caption_channels=12,
    )  # fmt: skip
    x = torch.randn(2, FRAMES * 6, 8)
    call = {
        "hidden_states": x, "encoder_hidden_states": torch.randn(2, 7, 12),
        "encoder_attention_mask": torch.ones(2, 7), "num_frames": FRAMES, "height": 2, "width": 3,
    }  # fmt: skip
    return model, call, 6


def hunyuan():
    from diffusers import HunyuanVideoTransformer3DModel

    model = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=2, patch_size_t=1, guidance_embeds=True,
        text_embed_dim=8, pooled_projection_dim=8, rope_axes_dim=(4, 4, 4),
    )  # fmt: skip
    mask = torch.ones(2, 7)
    mask[1, 4:] = 0
    call = {
        "hidden_states": torch.randn(2, 4, FRAMES, 4, 6), "encoder_hidden_states": torch.randn(2, 7, 8),
        "encoder_attention_mask": mask, "pooled_projections": torch.randn(2, 8),
        "guidance": torch.tensor([1.0, 1.0]),
    }  # fmt: skip
    return model, call, 6


@pytest.mark.parametrize("build", [wan, cogvideox, ltx, hunyuan])
@pytest.mark.parametrize("kind", ["sparse_causal", "sparse_causal_own"])
def test_inside_a_transformer_it_equals_a_mask(build, kind, monkeypatch):
    torch.manual_seed(0)
    model, call, tokens = build()
    model.eval()
    timestep = torch.tensor([300, 700])
    names = inspect.signature(model.forward).parameters
    call = {k: v for k, v in call.items() if k in names} | {"timestep": timestep, "return_dict": False}
    video = FRAMES * tokens
    lengths = []

    def masked(query, key, value, attn_mask=None, **more):
        length = query.shape[2]
        if key.shape[2] == length and length in (video, video + 7):  # self-attention over video (and text)
            lengths.append(length)
            may = allowed(
                FRAMES, tokens, length - video, text_first=build is cogvideox, own=kind.endswith("own")
            )
            attn_mask = may if attn_mask is None else may & attn_mask.bool()
        return dense(query, key, value, attn_mask=attn_mask, **more)

    dense = F.scaled_dot_product_attention
    with torch.no_grad():
        full = model(**call)[0]
        with monkeypatch.context() as patch:
            patch.setattr(F, "scaled_dot_product_attention", masked)
            want = model(**call)[0]
        assert len(lengths) == 2  # both layers
        sparse = copy.deepcopy(model)
        use_sparse_causal(sparse, kind)
        got = sparse(**call)[0]
        again = copy.deepcopy(sparse)(**call)[0]
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6)
    torch.testing.assert_close(again, got, rtol=0, atol=0)
    assert (got - full).abs().max() > 1e-3  # it is another attention than the dense one


def test_an_unknown_transformer_is_named():
    with pytest.raises(ValueError, match=r"generator\.attention.*not for Linear"):
        use_sparse_causal(torch.nn.Linear(2, 2))


def test_a_model_keeps_the_configured_attention_through_its_checkpoints(tmp_path):
    folder = make_tiny_wan(tmp_path / "wan")
    sparse = GeneratorConfig(model=folder, max_text_tokens=8, attention="sparse_causal")
    model, dense = load_model(sparse), load_model(sparse.model_copy(update={"attention": "dense"}))
    x, sigma = torch.randn(1, 4, 5, 4, 4), torch.tensor([0.5])
    condition = model.encode_prompts(["a red ring moves up"])
    want = model.predict(x, sigma, condition)
    assert (want - dense.predict(x, sigma, condition)).abs().max() > 1e-4
    model.prepare_training(None, None, "parent", 0)
    copied = model.predict_reference(x, sigma, condition)
    torch.testing.assert_close(copied, want, rtol=0, atol=1e-6)
    model.save_checkpoint(tmp_path / "checkpoint")
    again = load_model(sparse, tmp_path / "checkpoint")
    torch.testing.assert_close(again.predict(x, sigma, condition), want, rtol=0, atol=1e-6)
