"""HunyuanVideo's joint attention of video and text, over the tokens of all ranks, and where its passes are split.

Both streams are split once they are embedded: the mask, made of their lengths before, is over the tokens of all ranks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pab.broadcast.sites import Site
from pab.library.attention import ROTARY_JOINT_PLAN, joint_attention, projected, projected_out, projected_streams
from pab.library.broadcast_module import LATENTS, TEXT, CurrentPass
from pab.library.fused import attend_of
from pab.library.sequence_hooks import ModuleSplits, SequencePlan


def token_replace_plan(sites: Iterable[Site]) -> SequencePlan:
    """Returns the plan of a transformer whose blocks are told how many tokens are the given first frame's."""
    blocks = dict.fromkeys(site.name.rpartition(".")[0] for site in sites)
    counted = {path: replace(ROTARY_JOINT_PLAN.get(path, ModuleSplits()), counts=("num_tokens",)) for path in blocks}
    return {**ROTARY_JOINT_PLAN, **counted}


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
            qkv = projected_streams(attn, hidden_states, encoder_hidden_states)
        else:
            qkv = projected(attn, torch.cat([hidden_states, encoder_hidden_states], dim=1))
        out = joint_attention(
            qkv,
            streams=(LATENTS, TEXT),
            num_first=num_video,
            rotation=image_rotary_emb,
            current=self.current,
            # The tokens that count come first: the video, then the words.
            attend=attend_of(attn, self.current, used_keys=attention_mask.sum(-1, dtype=torch.int32).flatten()),
            mask=attention_mask,
        )
        video_out, text_out = out[:, :num_video], out[:, num_video:]
        if has_two_streams:
            return projected_out(attn, video_out), attn.to_add_out(text_out)
        return video_out, text_out
