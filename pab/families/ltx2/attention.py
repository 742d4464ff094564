"""LTX-2's attention of the video's tokens over all ranks, and where its passes are split.

The video's tokens are split over the ranks, the sound's, few hundred, are whole on each. So the video attends to the sound
without any exchange, and where the sound attends to the video, the video is gathered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pab.library.attention import projected_out
from pab.library.broadcast_module import LATENTS, CurrentPass
from pab.library.fused import attend_of, shared_rows
from pab.library.sequence_hooks import ModuleSplits, SequencePlan, Split
from pab.parallel.ulysses import ulysses_attention

_TOKENS, _PLACES = Split(dim=1, num_dims=3), Split(dim=2, num_dims=4)


def ltx2_plan(num_layers: int) -> SequencePlan:
    """Returns where passes of a transformer of this depth are split. The library's own plan does not know the sound."""
    blocks = [f"transformer_blocks.{i}.block" for i in range(num_layers)]  # within the wrappers of blocks with sites
    return {
        "": ModuleSplits(inputs={LATENTS: _TOKENS}),
        "rope": ModuleSplits(outputs={0: _PLACES, 1: _PLACES}),
        **{f"{block}.audio_to_video_attn": ModuleSplits(inputs={"query_rotary_emb": _PLACES}) for block in blocks},
        **{f"{block}.video_to_audio_attn": ModuleSplits(whole_inputs={"encoder_hidden_states": 1}) for block in blocks},
        "proj_out": ModuleSplits(gather_dim=1),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSelfAttention:
    """Stands in for the library's processor of the video's self attention, whose module calls it.

    `current` says which ranks share the pass, and how long the clip is.
    """

    current: CurrentPass

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        query_rotary_emb: tuple[Tensor, Tensor] | None = None,
        key_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Returns [B, P, C] for this rank's P tokens.

        `query_rotary_emb`: cosines and sines of their places [B, H, P, D/2].
        """
        assert encoder_hidden_states is None, "self attention"
        assert attention_mask is None, "every token counts"
        assert query_rotary_emb is not None, "places are told"
        assert key_rotary_emb is None, "queries and keys lie alike"
        current, rows = self.current, shared_rows(attn.to_q, hidden_states)
        q, k, v = attn.norm_q(attn.to_q(rows)), attn.norm_k(attn.to_k(rows)), attn.to_v(rows)
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (q, k, v))
        q, k = rotate_halves(q, query_rotary_emb), rotate_halves(k, query_rotary_emb)
        attend = attend_of(attn, current)
        out = ulysses_attention(q, k, v, lengths=[current.lengths[LATENTS]], sp=current.sp, attend=attend).flatten(2)
        return projected_out(attn, out)


def rotate_halves(x_BPHD: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates the first half of each head's channels against the second. `rotation`: cosines and sines [B, H, P, D/2]."""
    cosines, sines = (part.transpose(1, 2) for part in rotation)
    first, second = x_BPHD.float().chunk(2, dim=-1)
    turned = torch.addcmul(first * cosines, -sines, second), torch.addcmul(second * cosines, sines, first)
    return torch.cat(turned, dim=-1).to(x_BPHD.dtype)
