"""HunyuanVideo's joint attention of video and text, over the tokens of all ranks, and where its passes are split.

The library has no context-parallel plan for HunyuanVideo. Both streams are split once they are embedded: the mask, made of
their lengths before, is over the tokens of all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pab.library.broadcast_module import CurrentPass
from pab.library.sequence_hooks import LATENTS, TEXT, ModuleSplits, SequencePlan, Split
from pab.nn.layers import rotate_pairs
from pab.parallel.ulysses import ulysses_attention

_PLACES = Split(dim=0, num_dims=2)
HUNYUAN_VIDEO_PLAN: SequencePlan = {
    "rope": ModuleSplits(outputs={0: _PLACES, 1: _PLACES}),
    "transformer_blocks.0": ModuleSplits(inputs={LATENTS: Split(dim=1, num_dims=3), TEXT: Split(dim=1, num_dims=3)}),
    "proj_out": ModuleSplits(gather_dim=1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HunyuanAttention:
    """Called by the library's attention module. `current` says which ranks share the pass, and how long the streams are."""

    current: CurrentPass

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Returns video [B, P, C] and text of this rank.

        `attention_mask` [B, 1, 1, N], True for the tokens that count, over all ranks' video and then text.
        `image_rotary_emb`: cosines and sines [P, head_dim] of the video. Where blocks have two streams, each has its own
        projections; where they have one, the block projects the result.
        """
        num_video, has_two_streams = hidden_states.shape[1], attn.add_q_proj is not None
        if has_two_streams:
            video = _projected(attn, hidden_states, "to_{}", "norm_{}")
            text = _projected(attn, encoder_hidden_states, "add_{}_proj", "norm_added_{}")
            q, k, v = (torch.cat(pair, dim=1) for pair in zip(video, text, strict=True))
        else:
            q, k, v = _projected(attn, torch.cat([hidden_states, encoder_hidden_states], dim=1), "to_{}", "norm_{}")
        cosines, sines = (part[:, None] for part in image_rotary_emb)
        q, k = (torch.cat([rotate_pairs(x[:, :num_video], (cosines, sines)), x[:, num_video:]], dim=1) for x in (q, k))
        lengths = [self.current.lengths[stream] for stream in (LATENTS, TEXT)]
        out = ulysses_attention(q, k, v, lengths=lengths, sp=self.current.sp, mask=attention_mask).flatten(2)
        video_out, text_out = out[:, :num_video], out[:, num_video:]
        if has_two_streams:
            for layer in attn.to_out:
                video_out = layer(video_out)
            text_out = attn.to_add_out(text_out)
        return video_out, text_out


def _projected(attn: Any, x: Tensor, projection: str, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns a stream's queries, keys and values [B, P, H, head_dim]."""
    q, k, v = (getattr(attn, projection.format(part))(x).unflatten(2, (attn.heads, -1)) for part in "qkv")
    return getattr(attn, norm.format("q"))(q), getattr(attn, norm.format("k"))(k), v
