"""Sparse causal attention (HuViDPO, arXiv 2502.01690): a latent frame sees frame 0 and the frame before it.

A transformer's own attention processors are kept; only the product of queries with keys inside its
self-attention is replaced, after projections, norms and rotary positions. Text stays visible to every frame,
and text queries, where text and video share one sequence, see everything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from diffusers import ModelMixin

Kind = Literal["sparse_causal", "sparse_causal_own"]


def sparse_causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_frames: int,
    num_text: int = 0,
    *,
    text_first: bool = False,
    own: bool = False,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention output, [B, H, L, D] like query, key and value; L = num_frames · tokens + num_text.

    Keys of frame i are those of frames {0, i−1}, of {0, i−1, i} with `own`, and all of the text's. `mask`
    ([B, 1, 1, L], bool or additive) may hide keys, such as padded text, but not differ by query. Raises
    ValueError where the video's tokens do not divide into frames.
    """
    num_video = query.shape[2] - num_text
    if num_frames < 1 or num_video % num_frames:
        raise ValueError(f"{num_video} video tokens do not divide into {num_frames} latent frames")
    if mask is not None and (mask.dim() < 2 or mask.shape[-2] != 1):
        raise ValueError(f"sparse causal attention takes masks over keys alone, got {list(mask.shape)}")
    tokens = num_video // num_frames
    start = num_text if text_first else 0
    text = slice(0, start) if text_first else slice(num_video, None)
    index = torch.arange(query.shape[2], device=query.device)
    frame = index[start : start + num_video].view(num_frames, tokens)

    def attend(rows: Tensor, columns: Tensor) -> Tensor:
        """Queries `rows` [G, R] on keys `columns` [G, K], a group a row: [B, H, G·R, D]."""
        q, k, v = (
            t[:, :, i].transpose(1, 2).flatten(0, 1)
            for t, i in ((query, rows), (key, columns), (value, columns))
        )
        seen = None
        if mask is not None:
            seen = mask.expand(len(query), *mask.shape[1:])[..., columns].movedim(-2, 1).flatten(0, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)
        return out.unflatten(0, (len(query), len(rows))).transpose(1, 2).flatten(2, 3)

    def columns(*frames: Tensor) -> Tensor:
        return torch.cat([*frames, index[text].expand(len(frames[0]), -1)], dim=1)

    # Frames 0 and 1 would have frame 0 twice among their keys, which counts it double against the text.
    out = torch.empty_like(query)
    first, rest = frame[:1], frame[2:]
    out[:, :, frame[0]] = attend(first, columns(first))
    if num_frames > 1:
        second = frame[1:2]
        out[:, :, frame[1]] = attend(second, columns(first, second) if own else columns(first))
    if num_frames > 2:
        zero, before = first.expand(len(rest), -1), frame[1:-1]
        out[:, :, rest.flatten()] = attend(
            rest, columns(zero, before, rest) if own else columns(zero, before)
        )
    if num_text:
        out[:, :, text] = F.scaled_dot_product_attention(
            query[:, :, text], key, value, attn_mask=mask, scale=scale
        )
    return out


def _frames_of_video(transformer: Any, hidden_states: Tensor, **_: Any) -> int:
    patch = transformer.config.get("patch_size_t") or transformer.config.patch_size
    return hidden_states.shape[2] // (patch if isinstance(patch, int) else patch[0])


def _frames_of_cogvideox(transformer: Any, hidden_states: Tensor, **_: Any) -> int:
    return hidden_states.shape[1] // (transformer.config.patch_size_t or 1)


def _frames_of_ltx(transformer: Any, hidden_states: Tensor, *, num_frames: int, **_: Any) -> int:
    return num_frames // transformer.config.patch_size_t


# class → number of latent frames of a call, names of its self-attention modules, whether text comes first
_LAYOUTS: dict[str, tuple[Callable[..., int], tuple[str, ...], bool]] = {
    "WanTransformer3DModel": (_frames_of_video, ("attn1",), False),
    "LTXVideoTransformer3DModel": (_frames_of_ltx, ("attn1",), False),
    "CogVideoXTransformer3DModel": (_frames_of_cogvideox, ("attn1",), True),
    "HunyuanVideoTransformer3DModel": (_frames_of_video, ("transformer_blocks", "attn"), False),
}


def use_sparse_causal(transformer: ModelMixin, kind: Kind = "sparse_causal") -> None:
    """Makes every self-attention of `transformer` sparse and causal over latent frames, in place.

    `sparse_causal`: frames 0 and i−1, as published; `sparse_causal_own`: and frame i itself, ours. Weights,
    and so what is saved, stay: whoever loads a checkpoint elsewhere has to ask for it again. Raises
    ValueError for a class whose sequence layout is unknown.
    """
    name = type(transformer).__name__
    if name not in _LAYOUTS:
        raise ValueError(
            f"generator.attention: {kind} is known for {', '.join(sorted(_LAYOUTS))}, not for {name}"
        )
    num_frames_of, wanted, text_first = _LAYOUTS[name]

    def note_frames(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # of the module that is called, which may be a copy of this one: a reference is
        hidden_states = args[0] if args else kwargs["hidden_states"]
        rest = {k: v for k, v in kwargs.items() if k != "hidden_states"}
        for part in module.modules():
            if isinstance(processor := getattr(part, "processor", None), _SparseProcessor):
                processor.num_frames = num_frames_of(module, hidden_states, **rest)

    transformer.register_forward_pre_hook(note_frames, with_kwargs=True)
    found = 0
    for path, module in transformer.named_modules():
        parts = path.split(".")
        if parts[-1] == wanted[-1] and all(any(p.endswith(w) for p in parts) for w in wanted):
            module.processor = _SparseProcessor(module.processor, text_first, kind == "sparse_causal_own")
            found += 1
    assert found, f"no self-attention found in {name}"


class _SparseProcessor:
    """Calls the model's own processor, with the attention inside it made sparse."""

    def __init__(self, inner: Any, text_first: bool, own: bool) -> None:
        self.inner, self.text_first, self.own = inner, text_first, own
        self.num_frames = 0  # of the current call, latent frames

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
        *,
        image_rotary_emb: Any = None,
    ) -> Any:
        # Named one by one: diffusers drops what a processor's signature does not name. The families call
        # the rotary positions by two names and agree on their place.
        rotary = rotary_emb if image_rotary_emb is None else image_rotary_emb
        num_text = 0 if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        with _Replace(self, num_text):
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, rotary)


class _Replace(TorchFunctionMode):
    """Within it `scaled_dot_product_attention` is sparse and causal."""

    def __init__(self, processor: _SparseProcessor, num_text: int) -> None:
        super().__init__()
        self._processor, self._num_text = processor, num_text

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | (kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        # A mode is off inside its own __torch_function__: what this calls is the ordinary attention.
        return sparse_causal_attention(
            given["query"], given["key"], given["value"], self._processor.num_frames, self._num_text,
            text_first=self._processor.text_first, own=self._processor.own,
            mask=given.get("attn_mask"), scale=given.get("scale"),
        )  # fmt: skip
