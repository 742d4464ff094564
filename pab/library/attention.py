"""Self attention of transformers of the diffusers library over all tokens of a clip, whichever rank holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pab.library.broadcast_module import CurrentPass
from pab.library.sequence_hooks import LATENTS
from pab.nn.layers import rotate_pairs
from pab.parallel.ulysses import ulysses_attention


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
        q, k = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states))
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (q, k, attn.to_v(hidden_states)))
        cosines, sines = (x if x.dim() == 4 else x.unflatten(2, (attn.heads, -1)) for x in image_rotary_emb)
        q, k = rotate_pairs(q, (cosines, sines)), rotate_pairs(k, (cosines, sines))
        out = ulysses_attention(q, k, v, lengths=[self.current.lengths[LATENTS]], sp=self.current.sp).flatten(2)
        for layer in attn.to_out:
            out = layer(out)
        return out
