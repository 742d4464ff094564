"""Configuration and blocks of Latte-1 and Open-Sora-Plan 1.1.0; `latte.py` is the transformer made of them.

Spatial blocks have cross attention to the text, temporal ones have not. Frames are split over the ranks of the sequence
axis, so the only all-to-alls stand inside the temporal attention branch, and a broadcast temporal attention skips them.

Shape letters: B guidance rows x clips, T frames (this rank's), S patches of a frame, N sequences, L their length or text
tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pab.broadcast.state import handed_over
from pab.families.latte.sites import LATTE_PARTS, LATTE_STACKS
from pab.kernels import flash3, float8, modulated_norm, temporal_attention
from pab.kernels.choice import PLAIN, Kernels
from pab.nn.adaln_single import Attention, FeedForward, modulation_table
from pab.nn.layers import rotate_halves
from pab.parallel.mesh import SequenceParallel

Norm = Callable[[Tensor, Sequence[Tensor], Tensor, Tensor], tuple[Tensor, Tensor | float8.Rows8]]

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

    `modulation` [B, 6, D]. `grid`: patch rows and columns of a frame. `spatial_bias` [B*T, 1, 1, S] leaves patches out of
    spatial attention; the published models mask neither temporal nor cross attention by it. `kernels`: the fused
    operations that the pass uses.
    """

    modulation: Tensor
    grid: tuple[int, int]
    num_frames: int
    spatial_bias: Tensor | None
    rotations: tuple[tuple[Tensor, Tensor] | None, tuple[Tensor, Tensor] | None]
    sp: SequenceParallel
    kernels: Kernels = PLAIN

    @property
    def normed(self) -> Norm:
        """Returns the tokens plus what is added to them, and their modulated norm."""
        return modulated_norm.fused if self.kernels.norm else modulated_norm.plain


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

    def over_space(self, x_BTSD: Tensor | float8.Rows8, context: BlockContext) -> Tensor:
        """Attends over the patches of each frame."""
        bias = context.spatial_bias
        if self.to_qkv is None:
            assert isinstance(x_BTSD, Tensor), "8-bit rows go into one product"
            x_NLD = x_BTSD.flatten(0, 1)
            return self(x_NLD, bias=bias, rotation=context.rotations[0], grid=context.grid).view_as(x_BTSD)
        qkv_BTSE = self.to_qkv(x_BTSD)
        heads = qkv_BTSE.flatten(0, 1).unflatten(-1, (3, self.num_heads, -1))
        if bias is None:
            attend = flash3.fused if context.kernels.flash3 else flash3.plain
            out = self.project(attend(*heads.unbind(2)).flatten(2))
        else:
            q, k, v = heads.permute(2, 0, 3, 1, 4)
            out = self.attend(q, k, v, bias)
        return out.view(*qkv_BTSE.shape[:-1], -1)

    def over_time(self, x_BTSD: Tensor | float8.Rows8, context: BlockContext) -> Tensor:
        """Attends over the frames of each patch; T is all frames."""
        if self.to_qkv is None:
            assert isinstance(x_BTSD, Tensor), "8-bit rows go into one product"
            x_BSTD = x_BTSD.transpose(1, 2)
            grid = (context.num_frames,)
            out = self(x_BSTD.flatten(0, 1), bias=None, rotation=context.rotations[1], grid=grid)
            return out.view_as(x_BSTD).transpose(1, 2)
        attend = temporal_attention.fused if context.kernels.temporal else temporal_attention.plain
        return self.project(attend(self.to_qkv(x_BTSD), self.num_heads, None, None))

    def forward(
        self, x_NLD: Tensor, *, bias: Tensor | None, rotation: tuple[Tensor, Tensor] | None, grid: tuple[int, ...]
    ) -> Tensor:
        """Attends over L, the flattened `grid`, within each of N sequences."""
        source = x_NLD
        if self.compressed:
            if bias is not None:
                raise ValueError("a latent mask is not supported together with compressed keys and values")
            source = self._coarser(x_NLD.transpose(1, 2).unflatten(2, grid))
        q, k, v = self.heads(self.to_q(x_NLD)), self.heads(self.to_k(source)), self.heads(self.to_v(source))
        if rotation is not None:
            q, k = rotate_halves(q, rotation), rotate_halves(k, rotation)
        return self.attend(q, k, v, bias)

    def _coarser(self, cells: Tensor) -> Tensor:
        """Returns [N, L', D] from [N, D, *grid]. An odd number of frames is filled up with copies of the first."""
        if cells.dim() == 3 and cells.shape[2] % 2:
            first = cells[:, :, :1].expand(-1, -1, self.sr.stride[0] - 1)
            cells = torch.cat([first, cells], dim=2)
        return self.norm(self.sr(cells).flatten(2).transpose(1, 2))


class SpatialBlock(nn.Module):
    """Self attention within each frame, cross attention and MLP; each branch is a broadcast site."""

    attn1: SelfAttention

    def __init__(self, config: LatteConfig, index: int) -> None:
        super().__init__()
        dim = config.hidden_size
        compressed = config.compress_factor > 1 and index >= config.num_layers // 2
        self.sites = tuple(f"{LATTE_STACKS['spatial']}.{index}.{part}" for part in LATTE_PARTS["spatial"])
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)
        self.attn1 = SelfAttention(config, spatial=True, compressed=compressed)
        self.attn2 = Attention(dim, config.num_heads)
        self.ff = FeedForward(dim)

    def forward(
        self,
        x_BTSD: Tensor,
        context: BlockContext,
        text: tuple[Tensor, Tensor | None],
        reuse: tuple[Tensor | None, ...] = (None, None, None),
        wanted: tuple[bool, ...] = (False, False, False),
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Returns the new tokens, and per site the output to be kept where it is wanted.

        `reuse`: per site the output kept from an earlier step, or None to compute. `text`: keys and values, and bias.
        """
        table, normed = modulation_table(self.scale_shift_table, context.modulation, 2), _norm(self.ff, context)
        attended, crossed, mixed = reuse
        asking: Tensor | float8.Rows8 | None = None
        if attended is None:
            branch = self.attn1.over_space(normed(x_BTSD, (), table[0], table[1])[1], context)
            if self.ff.is_float8 and crossed is None:
                x_BTSD, attended, asking = float8.gated_sum(x_BTSD, branch, table[2], keeps=wanted[0])
            else:
                attended = table[2] * branch
        addends: tuple[Tensor, ...] = () if attended is None else (attended,)
        if crossed is None:
            if asking is None:
                asking = x_BTSD = x_BTSD + addends[0]
            crossed = self.attn2.to_text(asking, *text)
            addends = ()
        x_BTSD, mixed = _mixed(self.ff, x_BTSD, (*addends, crossed), table, mixed, context)
        return x_BTSD, handed_over((attended, crossed, mixed), wanted)


class TemporalBlock(nn.Module):
    """Self attention over the frames of each patch, and MLP; each branch is a broadcast site."""

    attn1: SelfAttention

    def __init__(self, config: LatteConfig, index: int) -> None:
        super().__init__()
        dim = config.hidden_size
        compressed = config.compress_factor > 1 and index >= config.num_layers // 2
        self.sites = tuple(f"{LATTE_STACKS['temporal']}.{index}.{part}" for part in LATTE_PARTS["temporal"])
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)
        self.attn1 = SelfAttention(config, spatial=False, compressed=compressed)
        self.ff = FeedForward(dim)

    def forward(
        self,
        x_BTSD: Tensor,
        context: BlockContext,
        reuse: tuple[Tensor | None, ...] = (None, None),
        wanted: tuple[bool, ...] = (False, False),
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Returns the new tokens, and per site the output to be kept where it is wanted."""
        table = modulation_table(self.scale_shift_table, context.modulation, 2)
        attended, mixed = reuse
        if attended is None:
            # Over several ranks tokens travel, and become 8-bit behind that.
            normed = context.normed if context.sp.size > 1 else _norm(self.ff, context)
            attended = table[2] * self._attend(normed(x_BTSD, (), table[0], table[1])[1], context)
        x_BTSD, mixed = _mixed(self.ff, x_BTSD, (attended,), table, mixed, context)
        return x_BTSD, handed_over((attended, mixed), wanted)

    def _attend(self, x_BTSD: Tensor | float8.Rows8, context: BlockContext) -> Tensor:
        if isinstance(x_BTSD, float8.Rows8):
            return self.attn1.over_time(x_BTSD, context)
        patches, frames = x_BTSD.shape[2], context.num_frames
        x_BTSD = context.sp.switch(x_BTSD, whole_dim=1, split_dim=2, size=frames)
        x_BTSD = self.attn1.over_time(x_BTSD, context)
        return context.sp.switch(x_BTSD, whole_dim=2, split_dim=1, size=patches)


def _norm(ff: FeedForward, context: BlockContext) -> Norm:
    """Returns the norm that a block's products want."""
    return float8.norm_rows if ff.is_float8 else context.normed


def _mixed(
    ff: FeedForward,
    x_BTSD: Tensor,
    addends: tuple[Tensor, ...],
    table: Tensor,
    mixed: Tensor | None,
    context: BlockContext,
) -> tuple[Tensor, Tensor]:
    """Returns the tokens after a block's last branch, and the branch's output; `mixed` is one to reuse.

    `addends`: what the branches before add to the tokens, which a norm takes into its own pass over them.
    """
    if mixed is None:
        x_BTSD, x = _norm(ff, context)(x_BTSD, addends, table[3], table[4])
        mixed = table[5] * ff(x, fused=context.kernels.gelu)
    else:
        for addend in addends:
            x_BTSD = x_BTSD + addend
    return x_BTSD + mixed, mixed
