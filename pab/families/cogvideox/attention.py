"""CogVideoX's joint attention of text and video, over the tokens of all ranks, and where its passes are split.

The library has no context-parallel plan for CogVideoX. Both streams are split: a text that stayed whole would have each rank
repeat its part of every MLP, and need a gather of its own after every attention.
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

COGVIDEOX_PLAN: SequencePlan = {
    "": ModuleSplits(inputs={"image_rotary_emb": Split(dim=0, num_dims=2)}),
    "transformer_blocks.0": ModuleSplits(
        inputs={LATENTS: Split(dim=1, num_dims=3), TEXT: Split(dim=1, num_dims=3)},
    ),
    "proj_out": ModuleSplits(gather_dim=1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CogVideoXAttention:
    """Called by the library's attention module. `current` says which ranks share the pass, and how long the streams are."""

    current: CurrentPass

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns video [B, P, C] and text of this rank. `image_rotary_emb`: cosines and sines [P, head_dim] of the video."""
        assert attention_mask is None, "text and video attend to all of both"
        num_text = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        q, k, v = (layer(tokens).unflatten(2, (attn.heads, -1)) for layer in (attn.to_q, attn.to_k, attn.to_v))
        q, k = attn.norm_q(q), attn.norm_k(k)
        if image_rotary_emb is not None:
            cosines, sines = (part[:, None] for part in image_rotary_emb)
            q, k = (
                torch.cat([x[:, :num_text], rotate_pairs(x[:, num_text:], (cosines, sines))], dim=1) for x in (q, k)
            )
        lengths = [self.current.lengths[stream] for stream in (TEXT, LATENTS)]
        out = ulysses_attention(q, k, v, lengths=lengths, sp=self.current.sp).flatten(2)
        for layer in attn.to_out:
            out = layer(out)
        return out[:, num_text:], out[:, :num_text]
