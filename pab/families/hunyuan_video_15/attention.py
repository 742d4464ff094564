"""HunyuanVideo 1.5's joint attention of video and text, over the tokens of all ranks.

Both streams are split once they are embedded. The mask, made before, is over the text of all ranks; the text that counts
comes first in it, and nothing attends to the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pab.library.attention import joint_attention, projected_out, projected_streams
from pab.library.broadcast_module import LATENTS, TEXT, CurrentPass
from pab.library.fused import attend_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Hunyuan15Attention:
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

        `attention_mask` [B, L]: True for the tokens of all ranks' text that count. Those that do not count attend too,
        unlike in the library, which keeps a mask of all pairs of tokens for them; nothing reads their result.
        `image_rotary_emb`: cosines and sines [P, head_dim] of the video.
        """
        num_video = hidden_states.shape[1]
        mask = F.pad(attention_mask, (self.current.lengths[LATENTS], 0), value=True)
        out = joint_attention(
            projected_streams(attn, hidden_states, encoder_hidden_states),
            streams=(LATENTS, TEXT),
            num_first=num_video,
            rotation=image_rotary_emb,
            current=self.current,
            # The tokens that count come first: the video, then the words.
            attend=attend_of(attn, self.current, used_keys=mask.sum(-1, dtype=torch.int32)),
            mask=mask[:, None, None],
        )
        return projected_out(attn, out[:, :num_video]), attn.to_add_out(out[:, num_video:])
