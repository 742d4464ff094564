"""Configuration and blocks of Latte-1 and Open-Sora-Plan 1.1.0; `transformer.py` is the transformer made of them.

Spatial blocks have cross attention to the text, temporal ones have not. Frames are split over the ranks of the sequence
axis, so the only all-to-alls stand inside the temporal attention branch, and a broadcast temporal attention skips them.

Shape letters: B guidance rows x clips, T frames (this rank's), S patches of a frame, N sequences, L their length or text
tokens, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pab.families.latte.sites import LATTE_PARTS, LATTE_STACKS
from pab.kernels import flash3, float8, temporal_attention
from pab.kernels.choice import PLAIN, Kernels
from pab.kernels.product_end import End, ended
from pab.nn.adaln_single import Attention, FeedForward, modulation_table
from pab.nn.gated_block import Attention as AttentionBranch
from pab.nn.gated_block import Tokens, norm_for, over_all_frames, run_branches
from pab.nn.layers import rotate_halves
from pab.parallel.mesh import SequenceParallel

PRODUCTS = ("attn1.to_qkv", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")
TEXT_PRODUCTS = ("attn2.to_q", "attn2.to_out.0")
"""The linear layers of a block that every step runs over all tokens; the latter of spatial blocks alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatteConfig:
    """Sizes of one model; the defaults are Latte-1's.

    `sample_size`: latent height and width of the training. `video_length`: latent frames of the training.
    `temporal_scale` divides frame positions. `null_text`: whether the file carries Open-Sora-Plan's unused null text.
    `compress_factor`: keys and values of the later half of the blocks are taken from a grid that is coarser by this factor.
    """

    num_layers: int = 28
    num_heads: int = 16
    head_dim: int = 72
    in_channels: int = 4
    out_channels: int = 8
    patch_size: int = 2
    sample_size: int = 64
    video_length: int = 16
    caption_channels: int = 4096
    temporal_scale: float = 1.0
    null_text: bool = False
    use_rope: bool = False
    compress_factor: int = 1

    def __post_init__(self) -> None:
        if self.use_rope and (self.compress_factor > 1 or self.head_dim % 4):
            raise ValueError("rotary positions need head_dim divisible by 4, and uncompressed keys and values")

    @property
    def hidden_size(self) -> int:
        """Channels of a token."""
        return self.num_heads * self.head_dim

    @property
    def position_scale(self) -> float:
        """What spatial positions are divided by: the training size in units of 64 latents."""
        return max(self.sample_size // 64, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockContext:
    """What every block of one pass shares.

    `modulation` [B, 6, D], or [1, 6, D] where all rows share it. `grid`: patch rows and columns of a frame. `spatial_bias`
    [B*T, 1, 1, S] leaves patches out of spatial attention; the published models mask neither temporal nor cross attention
    by it. `kernels`: the fused operations that the pass uses.
    """

    modulation: Tensor
    grid: tuple[int, int]
    num_frames: int
    spatial_bias: Tensor | None
    rotations: tuple[tuple[Tensor, Tensor] | None, tuple[Tensor, Tensor] | None]
    sp: SequenceParallel
    kernels: Kernels = PLAIN


class SelfAttention(Attention):
    """Self attention; its keys and values may come from a coarser grid, and may carry rotary positions."""

    def __init__(self, config: LatteConfig, *, spatial: bool, compressed: bool) -> None:
        super().__init__(config.hidden_size, config.num_heads)
        if compressed:
            conv = nn.Conv2d if spatial else nn.Conv1d
            dim, factor = config.hidden_size, config.compress_factor
            self.sr = conv(dim, dim, kernel_size=factor, stride=factor, groups=dim)
            self.norm = nn.LayerNorm(dim)
        self.compressed = compressed
        self.rotates = config.use_rope
        self.to_qkv: nn.Linear | float8.Float8Linear | None = None

    @torch.no_grad()
    def join_products(self) -> None:
        """Makes queries, keys and values by one product from now on, where they come from the same tokens as they are."""
        if self.compressed or self.rotates or self.to_qkv is not None:
            return
        parts = (self.to_q, self.to_k, self.to_v)
        dim = self.to_q.in_features
        with torch.device("meta"):
            joined = nn.Linear(dim, 3 * dim)
        joined.weight = nn.Parameter(torch.cat([part.weight for part in parts]), requires_grad=False)
        joined.bias = nn.Parameter(torch.cat([part.bias for part in parts]), requires_grad=False)
        self.to_qkv = joined
        del self.to_q, self.to_k, self.to_v

    def over_space(self, x_BTSD: Tokens, context: BlockContext, end: End) -> Tensor:
        """Attends over the patches of each frame."""
        bias = context.spatial_bias
        if self.to_qkv is None:
            assert isinstance(x_BTSD, Tensor), "8-bit rows go into one product"
            x_NLD = x_BTSD.flatten(0, 1)
            out = self(x_NLD, bias=bias, rotation=context.rotations[0], grid=context.grid)
            return ended(self.last, out.view_as(x_BTSD), end)
        qkv_BTSE = self.to_qkv(x_BTSD)
        heads = qkv_BTSE.flatten(0, 1).unflatten(-1, (3, self.num_heads, -1))
        if bias is None:
            attend = flash3.fused if context.kernels.flash3 else flash3.plain
            out = attend(*heads.unbind(2)).flatten(2)
        else:
            q, k, v = heads.permute(2, 0, 3, 1, 4)
            out = self.mixed(q, k, v, bias)
        return ended(self.last, out.view(*qkv_BTSE.shape[:-1], -1), end)

    def over_time(self, x_BTSD: Tokens, context: BlockContext, end: End) -> Tensor:
        """Attends over the frames of each patch; T is all frames."""
        if self.to_qkv is None:
            assert isinstance(x_BTSD, Tensor), "8-bit rows go into one product"
            x_BSTD = x_BTSD.transpose(1, 2)
            grid = (context.num_frames,)
            out = self(x_BSTD.flatten(0, 1), bias=None, rotation=context.rotations[1], grid=grid)
            return ended(self.last, out.view_as(x_BSTD), end).transpose(1, 2)
        attend = temporal_attention.fused if context.kernels.temporal else temporal_attention.plain
        return ended(self.last, attend(self.to_qkv(x_BTSD), self.num_heads, None, None), end)

    def forward(
        self, x_NLD: Tensor, *, bias: Tensor | None, rotation: tuple[Tensor, Tensor] | None, grid: tuple[int, ...]
    ) -> Tensor:
        """Attends over L, the flattened `grid`, within each of N sequences; the output layer is the caller's."""
        source = x_NLD
        if self.compressed:
            if bias is not None:
                raise ValueError("a latent mask is not supported together with compressed keys and values")
            source = self._coarser(x_NLD.transpose(1, 2).unflatten(2, grid))
        q, k, v = self.heads(self.to_q(x_NLD)), self.heads(self.to_k(source)), self.heads(self.to_v(source))
        if rotation is not None:
            q, k = rotate_halves(q, rotation), rotate_halves(k, rotation)
        return self.mixed(q, k, v, bias)

    def _coarser(self, cells: Tensor) -> Tensor:
        """Returns [N, L', D] from [N, D, *grid]. An odd number of frames is filled up with copies of the first."""
        if cells.dim() == 3 and cells.shape[2] % 2:
            first = cells[:, :, :1].expand(-1, -1, self.sr.stride[0] - 1)
            cells = torch.cat([first, cells], dim=2)
        return self.norm(self.sr(cells).flatten(2).transpose(1, 2))


class LatteBlock(nn.Module):
    """Self attention within each frame ("spatial") or over the frames of each patch ("temporal"), and an MLP.

    Spatial blocks have cross attention between the two. Each branch is a broadcast site.
    """

    attn1: SelfAttention

    def __init__(self, config: LatteConfig, index: int, *, stack: str) -> None:
        super().__init__()
        dim, self.spatial = config.hidden_size, stack == "spatial"
        compressed = config.compress_factor > 1 and index >= config.num_layers // 2
        self.sites = tuple(f"{LATTE_STACKS[stack]}.{index}.{part}" for part in LATTE_PARTS[stack])
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)
        self.attn1 = SelfAttention(config, spatial=self.spatial, compressed=compressed)
        if self.spatial:
            self.attn2 = Attention(dim, config.num_heads)
        self.ff = FeedForward(dim)

    def forward(
        self,
        x_BTSD: Tensor,
        context: BlockContext,
        text: tuple[Tensor, Tensor | None] | None,
        reuse: tuple[Tensor | None, ...] | None = None,
        wanted: tuple[bool, ...] | None = None,
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Returns the new tokens, and per site the output to be kept where it is wanted.

        `reuse`: per site the output kept from an earlier step, or None to compute. `text`: keys and values, and bias, for
        spatial blocks. Without `reuse` and `wanted` every site computes and none is kept.
        """
        # Not from `sites`: a graph would hold their names, and blocks could not share it.
        count = 3 if self.spatial else 2
        # Over several ranks tokens travel, and become 8-bit behind that.
        travels = not self.spatial and context.sp.size > 1
        # Where attention is reused nothing asks how it is made: blocks of both kinds share a graph.
        adds = (reuse is None or reuse[0] is None) and not travels and self.attn1.to_qkv is not None
        return run_branches(
            x_BTSD,
            modulation_table(self.scale_shift_table, context.modulation),
            (reuse or (None,) * count, wanted or (False,) * count),
            norm=norm_for(context.kernels, is_float8=self.ff.is_float8 and not travels),
            attention=AttentionBranch(lambda x, end: self._attend(x, context, end), self.attn1.last if adds else None),
            ask_text=None if text is None else lambda x: self.attn2.to_text(x, *text),
            mlp=self.ff,
            kernels=context.kernels,
        )

    def _attend(self, x_BTSD: Tokens, context: BlockContext, end: End) -> Tensor:
        if self.spatial:
            return self.attn1.over_space(x_BTSD, context, end)
        return over_all_frames(
            x_BTSD, lambda x: self.attn1.over_time(x, context, end), num_frames=context.num_frames, sp=context.sp
        )
