"""CogVideoX's joint attention of text and video, over the tokens of all ranks, and where its passes are split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pab.library.attention import JOINT_PLAN, joint_attention, projected, projected_out
from pab.library.broadcast_module import LATENTS, TEXT, CurrentPass
from pab.library.fused import attend_of
from pab.library.sequence_hooks import ModuleSplits, SequencePlan, Split

COGVIDEOX_PLAN: SequencePlan = {
    "": ModuleSplits(inputs={"image_rotary_emb": Split(dim=0, num_dims=2)}),
    **JOINT_PLAN,
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
        out = joint_attention(
            projected(attn, torch.cat([encoder_hidden_states, hidden_states], dim=1)),
            streams=(TEXT, LATENTS),
            num_first=num_text,
            rotation=image_rotary_emb,
            current=self.current,
            attend=attend_of(attn, self.current),
        )
        out = projected_out(attn, out)
        return out[:, num_text:], out[:, :num_text]
