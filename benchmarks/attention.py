"""Time of dense and sparse causal self-attention against the number of latent frames.

    python benchmarks/attention.py [--frames 4 8 16 32] [--tokens 96] [--repeats 5]

One Wan transformer of two layers, forward and backward, the same weights and input for both; the median of
the repeats, taken in turns so that a slower moment of the machine hits both. Prints one JSON row a length.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time

import torch
from diffusers import WanTransformer3DModel

from generator.attention import use_sparse_causal


def step(model: torch.nn.Module, x: torch.Tensor, text: torch.Tensor) -> float:
    """Seconds of a forward and backward."""
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    model(
        hidden_states=x, timestep=torch.full((len(x),), 500, device=x.device), encoder_hidden_states=text
    ).sample.square().mean().backward()
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--tokens", type=int, default=96, help="tokens of a latent frame; a multiple of 8")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dense = WanTransformer3DModel(
        patch_size=(1, 1, 1), num_attention_heads=4, attention_head_dim=24, in_channels=16, out_channels=16,
        text_dim=64, freq_dim=64, ffn_dim=192, num_layers=2, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=64,
    ).to(device)  # fmt: skip
    sparse = copy.deepcopy(dense)
    use_sparse_causal(sparse)
    for num_frames in options.frames:
        x = torch.randn(1, 16, num_frames, options.tokens // 8, 8, device=device)
        text = torch.randn(1, 8, 64, device=device)
        step(dense, x, text), step(sparse, x, text)
        times = [(step(dense, x, text), step(sparse, x, text)) for _ in range(options.repeats)]
        full, part = (statistics.median(t[i] for t in times) for i in (0, 1))
        row = {"frames": num_frames, "tokens": num_frames * options.tokens, "dense_s": round(full, 4)}
        print(json.dumps(row | {"sparse_s": round(part, 4), "ratio": round(part / full, 3)}), flush=True)


if __name__ == "__main__":
    main()
