"""Configuration and blocks of Open-Sora 1.2's transformer; `stdit3.py` is the transformer made of them.

Each block has self attention over space or time, cross attention and an MLP; each branch is a broadcast site. The only
all-to-alls stand inside the temporal attention branch.

Shape letters: B guidance rows x clips, T frames (this rank's), S patches of a frame, L text tokens, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pab.families.open_sora.sites import PARTS
from pab.kernels import attention, flash3, float8, head_norm, modulated_norm, temporal_attention
from pab.kernels.choice import PLAIN, Kernels
from pab.kernels.product_end import AS_IT_IS, End, ended
from pab.nn.gated_block import Attention, Tokens, norm_for, over_all_frames, run_branches
from pab.nn.layers import Mlp, RMSNorm, rotate_pairs
from pab.parallel.mesh import SequenceParallel

PRODUCTS = ("attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.proj", "mlp.fc1", "mlp.fc2")
"""Of a block, the linear layers that every step runs over all tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class STDiT3Config:
    """Sizes of one STDiT3; the defaults are the published checkpoint's (1.2 billion elements)."""

    depth: int = 28
    hidden_size: int = 1152
    num_heads: int = 16
    mlp_ratio: float = 4.0
    in_channels: int = 4
    patch_size: tuple[int, int, int] = (1, 2, 2)
    input_sq_size: int = 512
    caption_channels: int = 4096
    model_max_length: int = 300
    qk_norm: bool = True
    pred_sigma: bool = True

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads or self.hidden_size // self.num_heads % 2:
            raise ValueError(
                f"hidden_size={self.hidden_size}, needs num_heads={self.num_heads} times an even head size"
            )

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def out_channels(self) -> int:
        """Channels predicted: velocity, and as many more (unused when sampling) with `pred_sigma`."""
        return self.in_channels * (2 if self.pred_sigma else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockContext:
    """What every block of one pass shares.

    `modulation` [B, 6, D], or [1, 6, D] where all rows share it; `modulation0` the same at timestep 0 for frames that are not
    generated (`active_BT` False);
    `num_frames` counts all ranks' frames. `kernels`: the fused operations that the pass uses.
    """

    modulation: Tensor
    modulation0: Tensor | None
    active_BT: Tensor | None
    rotation: tuple[Tensor, Tensor]
    num_frames: int
    sp: SequenceParallel
    kernels: Kernels = PLAIN


class SelfAttention(nn.Module):
    """Multi-head self attention with query and key norm, and rotary positions where a rotation is given."""

    def __init__(self, config: STDiT3Config) -> None:
        super().__init__()
        dim = config.hidden_size
        self.num_heads = config.num_heads
        self.qkv: nn.Linear | float8.Float8Linear = nn.Linear(dim, 3 * dim)
        self.q_norm: nn.Module = RMSNorm(config.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm: nn.Module = RMSNorm(config.head_dim) if config.qk_norm else nn.Identity()
        self.proj: nn.Linear | float8.Float8Linear = nn.Linear(dim, dim)

    def over_space(self, x_BTSD: Tokens, kernels: Kernels, end: End = AS_IT_IS) -> Tensor:
        """Attends over the S patches of each frame."""
        qkv_BTSE = self.qkv(x_BTSD)
        attend = flash3.fused if kernels.flash3 else flash3.plain
        out = attend(*self._normed_heads(qkv_BTSE.flatten(0, 1), kernels)).flatten(2)
        return ended(self.proj, out.view(*qkv_BTSE.shape[:-1], -1), end)

    def _normed_heads(self, qkv_NLE: Tensor, kernels: Kernels) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries and keys, normalised, and values, each [N, L, H, C]."""
        q, k, v = qkv_NLE.unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        weights = self._norm_weights()
        if kernels.head_norm and weights is not None:
            return *head_norm.fused(qkv_NLE, self.num_heads, weights), v
        return self.q_norm(q), self.k_norm(k), v

    def over_time(
        self, x_BTSD: Tokens, rotation: tuple[Tensor, Tensor], kernels: Kernels, end: End = AS_IT_IS
    ) -> Tensor:
        """Attends over the T frames of each patch, with rotary positions."""
        qkv = self.qkv(x_BTSD)
        if kernels.temporal:
            attended = temporal_attention.fused(qkv, self.num_heads, self._norm_weights(), rotation)
            return ended(self.proj, attended, end)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 2, 4, 1, 5)
        q, k = rotate_pairs(self.q_norm(q), rotation), rotate_pairs(self.k_norm(k), rotation)
        out_BSHTC = F.scaled_dot_product_attention(q, k, v)
        return ended(self.proj, out_BSHTC.permute(0, 3, 1, 2, 4).flatten(3), end)

    def _norm_weights(self) -> tuple[Tensor, Tensor] | None:
        if isinstance(self.q_norm, RMSNorm) and isinstance(self.k_norm, RMSNorm):
            return self.q_norm.weight, self.k_norm.weight
        return None


class CrossAttention(nn.Module):
    """Multi-head attention from video tokens to text tokens whose keys and values are given."""

    def __init__(self, config: STDiT3Config) -> None:
        super().__init__()
        dim = config.hidden_size
        self.num_heads = config.num_heads
        self.q_linear: nn.Linear | float8.Float8Linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(dim, 2 * dim)
        self.proj: nn.Linear | float8.Float8Linear = nn.Linear(dim, dim)

    def keys_values(self, text_BLD: Tensor) -> Tensor:
        """Returns [B, 2, heads, L, head_dim]; they do not depend on the step."""
        return self.kv_linear(text_BLD).unflatten(-1, (2, self.num_heads, -1)).permute(0, 2, 3, 1, 4)

    def forward(
        self,
        x_BTSD: Tokens,
        keys_values: Tensor,
        mask_B11L: Tensor | None,
        kernels: Kernels = PLAIN,
    ) -> Tensor:
        """Returns [B, T, S, D]."""
        attend = attention.fused_cross if kernels.cross and mask_B11L is not None else attention.plain_cross
        q_BTSD = self.q_linear(x_BTSD)
        return self.proj(attend(q_BTSD.flatten(1, 2), keys_values, mask_B11L).view_as(q_BTSD))


class STDiT3Block(nn.Module):
    """Self attention (over space or time), cross attention and MLP; each branch is a broadcast site."""

    def __init__(self, config: STDiT3Config, *, temporal: bool, index: int) -> None:
        super().__init__()
        dim = config.hidden_size
        self.temporal = temporal
        stack = "temporal" if temporal else "spatial"
        self.sites = tuple(f"{stack}_blocks.{index}.{part}" for part in PARTS)
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)
        self.attn = SelfAttention(config)
        self.cross_attn = CrossAttention(config)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio), dim)

    def forward(
        self,
        x_BTSD: Tensor,
        context: BlockContext,
        text: tuple[Tensor, Tensor | None],
        reuse: tuple[Tensor | None, ...] = (None, None, None),
        wanted: tuple[bool, ...] = (False, False, False),
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Returns the new tokens, and per site the output to be kept where it is wanted.

        `reuse`: per site the output kept from an earlier step, or None to compute. `text`: keys and values, and mask.
        """
        kernels, norm = context.kernels, norm_for(context.kernels, is_float8=self.mlp.is_float8)
        # Where attention is reused nothing asks for the stack: blocks of both share a graph.
        travels = reuse[0] is None and context.sp.size > 1 and self.temporal
        if travels and self.mlp.is_float8:
            # Over several ranks tokens travel, and become 8-bit behind that.
            norm = modulated_norm.plain
        return run_branches(
            x_BTSD,
            self._modulation(context),
            (reuse, wanted),
            norm=norm,
            attention=Attention(lambda x, end: self._attend(x, context, end), None if travels else self.attn.proj),
            ask_text=lambda x: self.cross_attn(x, *text, kernels),
            mlp=self.mlp,
            kernels=kernels,
        )

    def _modulation(self, context: BlockContext) -> Tensor:
        """Returns [6, B or 1, T or 1, 1, D]: shift, scale, gate of attention, then of the MLP."""
        table = (self.scale_shift_table + context.modulation).transpose(0, 1)[:, :, None, None]
        if context.active_BT is None or context.modulation0 is None:
            return table
        still = (self.scale_shift_table + context.modulation0).transpose(0, 1)[:, :, None, None]
        return torch.where(context.active_BT[:, :, None, None], table, still)

    def _attend(self, x_BTSD: Tokens, context: BlockContext, end: End) -> Tensor:
        if not self.temporal:
            return self.attn.over_space(x_BTSD, context.kernels, end)
        return over_all_frames(
            x_BTSD,
            lambda x: self.attn.over_time(x, context.rotation, context.kernels, end),
            num_frames=context.num_frames,
            sp=context.sp,
        )
