"""Attention of transformers of the diffusers library over all tokens of a clip, whichever rank holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pab.library.broadcast_module import LATENTS, TEXT, CurrentPass
from pab.library.fused import attend_of, normed_and_rotated, shared_rows
from pab.library.sequence_hooks import ModuleSplits, SequencePlan, Split
from pab.nn.layers import rotate_pairs
from pab.parallel.ulysses import Attend, ulysses_attention

JOINT_PLAN: SequencePlan = {
    "transformer_blocks.0": ModuleSplits(inputs={LATENTS: Split(dim=1, num_dims=3), TEXT: Split(dim=1, num_dims=3)}),
    "proj_out": ModuleSplits(gather_dim=1),
}
"""Where video and text are split that blocks attend to together. The library has no plan for such transformers.

A text that stayed whole would have each rank repeat its part of every MLP, and need a gather of its own after every
attention.
"""

_PLACES = Split(dim=0, num_dims=2)
ROTARY_JOINT_PLAN: SequencePlan = {"rope": ModuleSplits(outputs={0: _PLACES, 1: _PLACES}), **JOINT_PLAN}
"""The same for transformers that make cosines and sines of the video's places themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfAttention:
    """Stands in for the library's processor of Wan and LTX-Video, whose attention module calls it.

    `current` says which ranks share the pass, and how long the clip is.
    """

    current: CurrentPass

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Returns [B, P, C] for this rank's P tokens.

        `image_rotary_emb`: cosines and sines of their places, of all heads [B, P, C] or for every head [1, P, 1, head_dim].
        """
        assert encoder_hidden_states is None, "self attention"
        assert attention_mask is None, "every token counts"
        assert image_rotary_emb is not None, "places are told"
        current, rows = self.current, shared_rows(attn.to_q, hidden_states)
        q, k = (
            normed_and_rotated(attn, norm, product(rows), image_rotary_emb, current)
            for norm, product in ((attn.norm_q, attn.to_q), (attn.norm_k, attn.to_k))
        )
        v = attn.to_v(rows).unflatten(2, (attn.heads, -1))
        attend = attend_of(attn, current)
        out = ulysses_attention(q, k, v, lengths=[current.lengths[LATENTS]], sp=current.sp, attend=attend).flatten(2)
        return projected_out(attn, out)


def projected(attn: Any, x: Tensor, projection: str = "to_{}", norm: str = "norm_{}") -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries, keys and values [B, P, H, head_dim] of tokens, normed per head by layers of these names."""
    layers = [getattr(attn, projection.format(part)) for part in "qkv"]
    rows = shared_rows(layers[0], x)
    q, k, v = (layer(rows).unflatten(2, (attn.heads, -1)) for layer in layers)
    return getattr(attn, norm.format("q"))(q), getattr(attn, norm.format("k"))(k), v


def projected_streams(attn: Any, video: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries, keys and values of the video and then the text, each stream with projections of its own."""
    of_video, of_text = projected(attn, video), projected(attn, text, "add_{}_proj", "norm_added_{}")
    q, k, v = (torch.cat(pair, dim=1) for pair in zip(of_video, of_text, strict=True))
    return q, k, v


def projected_out(attn: Any, x: Tensor) -> Tensor:
    """Runs the output layers of the library's attention module."""
    for layer in attn.to_out:
        x = layer(x)
    return x


def joint_attention(
    qkv: tuple[Tensor, Tensor, Tensor],
    *,
    streams: Sequence[str],
    num_first: int,
    rotation: tuple[Tensor, Tensor] | None,
    current: CurrentPass,
    attend: Attend,
    mask: Tensor | None = None,
) -> Tensor:
    """Attends over video and text of all ranks at once. Returns [B, P, C] for this rank's tokens of both.

    `qkv` [B, P, H, head_dim]: of the streams in this order, `num_first` of the first. `rotation`: cosines and sines
    [places, head_dim] of the video's tokens. `attend`: of `attend_of`. `mask` [B, 1, 1, N]: True for tokens that count, of
    all ranks' streams.
    """
    q, k, v = qkv
    if rotation is not None:
        q, k = (_with_video_rotated(x, streams.index(LATENTS), num_first, rotation) for x in (q, k))
    lengths = [current.lengths[stream] for stream in streams]
    return ulysses_attention(q, k, v, lengths=lengths, sp=current.sp, mask=mask, attend=attend).flatten(2)


def _with_video_rotated(x: Tensor, video: int, num_first: int, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cosines, sines = (part[:, None] for part in rotation)
    parts = [x[:, :num_first], x[:, num_first:]]
    parts[video] = rotate_pairs(parts[video], (cosines, sines))
    return torch.cat(parts, dim=1)
