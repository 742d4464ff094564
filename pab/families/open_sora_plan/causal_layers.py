"""Layers of Open-Sora-Plan's causal VAE. Key names are those of the published checkpoints.

In time a causal convolution sees its own frame and earlier ones; copies of the first frame stand before it.
Shape letters: B clips, C channels, T frames, H, W.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_GROUPS = 32
NORM_EPS = 1e-6


def group_norm(channels: int) -> nn.GroupNorm:
    """Returns the norm used everywhere here."""
    return nn.GroupNorm(NORM_GROUPS, channels, eps=NORM_EPS)


def repeat_first_frame(x_BCTHW: Tensor, count: int) -> Tensor:
    """Puts copies of the first frame before it."""
    return torch.cat([x_BCTHW[:, :, :1].expand(-1, -1, count, -1, -1), x_BCTHW], dim=2) if count else x_BCTHW


def per_frame(layer: nn.Module, x_BCTHW: Tensor) -> Tensor:
    """Applies a layer for images to every frame."""
    out = layer(x_BCTHW.transpose(1, 2).flatten(0, 1))
    return out.unflatten(0, (x_BCTHW.shape[0], -1)).transpose(1, 2)


class CausalConv3d(nn.Module):
    """A 3-D convolution that is causal in time."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: tuple[int, int, int],
        space_stride: int = 1,
        space_padding: int | None = None,
    ) -> None:
        super().__init__()
        self.time_padding = kernel_size[0] - 1
        padding = kernel_size[1] // 2 if space_padding is None else space_padding
        stride = (1, space_stride, space_stride)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size, stride=stride, padding=(0, padding, padding))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Returns [B, out_channels, T, H, W], with H and W divided by the stride."""
        return self.conv(repeat_first_frame(x_BCTHW, self.time_padding))


class FrameConv2d(nn.Conv2d):
    """A 2-D convolution applied to every frame."""

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Returns [B, out_channels, T, H, W]."""
        return per_frame(super().forward, x_BCTHW)  # type: ignore[arg-type]


def conv(kind: str, in_channels: int, out_channels: int, *, kernel_size: int) -> nn.Module:
    """Returns the convolution that a published configuration names."""
    if kind == "Conv2d":
        return FrameConv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    if kind == "CausalConv3d":
        return CausalConv3d(in_channels, out_channels, kernel_size=(kernel_size,) * 3)
    raise ValueError(f"convolution {kind!r} is not known, allowed CausalConv3d, Conv2d")


class ResnetBlock(nn.Module):
    """Two normed convolutions beside a shortcut, over the clip or (`flat`) frame by frame."""

    def __init__(self, in_channels: int, out_channels: int, *, flat: bool) -> None:
        super().__init__()
        kind = "Conv2d" if flat else "CausalConv3d"
        self.flat = flat
        self.norm1 = group_norm(in_channels)
        self.conv1 = conv(kind, in_channels, out_channels, kernel_size=3)
        self.norm2 = group_norm(out_channels)
        self.conv2 = conv(kind, out_channels, out_channels, kernel_size=3)
        self.nin_shortcut = (
            conv(kind, in_channels, out_channels, kernel_size=1) if in_channels != out_channels else nn.Identity()
        )

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Returns [B, out_channels, T, H, W]."""
        hidden = self.conv1(F.silu(self._normed(self.norm1, x_BCTHW)))
        hidden = self.conv2(F.silu(self._normed(self.norm2, hidden)))
        return self.nin_shortcut(x_BCTHW) + hidden

    def _normed(self, norm: nn.Module, x_BCTHW: Tensor) -> Tensor:
        return per_frame(norm, x_BCTHW) if self.flat else norm(x_BCTHW)


class FrameAttention(nn.Module):
    """Single-head attention among the pixels of each frame.

    `mixed` is the first release's variant: it cuts the memory of [C, T, H, W] into T pieces of C rows without putting time
    first, so frames and channels mix. Checkpoints trained with it need it.
    """

    def __init__(self, channels: int, *, mixed: bool) -> None:
        super().__init__()
        self.mixed = mixed
        self.norm = group_norm(channels)
        self.q = CausalConv3d(channels, channels, kernel_size=(1, 1, 1))
        self.k = CausalConv3d(channels, channels, kernel_size=(1, 1, 1))
        self.v = CausalConv3d(channels, channels, kernel_size=(1, 1, 1))
        self.proj_out = CausalConv3d(channels, channels, kernel_size=(1, 1, 1))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Returns the input plus what each pixel attends to."""
        normed = self.norm(x_BCTHW)
        q, k, v = (self._tokens(layer(normed)) for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        batch, channels, frames, height, width = x_BCTHW.shape
        if self.mixed:
            attended = attended.reshape(x_BCTHW.shape)
        else:
            attended = attended.reshape(batch, frames, channels, height, width).transpose(1, 2)
        return x_BCTHW + self.proj_out(attended)

    def _tokens(self, x_BCTHW: Tensor) -> Tensor:
        """Returns [B*T, 1, H*W, C]."""
        batch, channels, frames = x_BCTHW.shape[:3]
        if not self.mixed:
            x_BCTHW = x_BCTHW.transpose(1, 2)
        return x_BCTHW.reshape(batch * frames, channels, -1).transpose(1, 2)[:, None]


class SpatialDownsample(nn.Module):
    """Halves height and width: one zero row below, one zero column at the right, a strided convolution."""

    def __init__(self, channels: int, *, flat: bool) -> None:
        super().__init__()
        self.conv: nn.Module = (
            FrameConv2d(channels, channels, 3, stride=2)
            if flat
            else CausalConv3d(channels, channels, kernel_size=(1, 3, 3), space_stride=2, space_padding=0)
        )

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Returns [B, C, T, H/2, W/2]."""
        return self.conv(F.pad(x_BCTHW, [0, 1, 0, 1]))


class SpatialUpsample(nn.Module):
    """Doubles height and width by repeating pixels, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, kernel_size=(1, 3, 3))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Returns [B, C, T, 2H, 2W]."""
        return self.conv(F.interpolate(x_BCTHW, scale_factor=(1.0, 2.0, 2.0), mode="nearest"))


class TimeDownsample(nn.Module):
    """Makes 2n + 1 frames n + 1: means of three frames in steps of two; `residual` mixes in a strided convolution."""

    def __init__(self, channels: int, *, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        if residual:
            self.mix_factor = nn.Parameter(torch.tensor([2.0]))
            self.conv = nn.Conv3d(channels, channels, 3, stride=(2, 1, 1), padding=(0, 1, 1))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Returns [B, C, T/2 rounded up, H, W]."""
        x_BCTHW = repeat_first_frame(x_BCTHW, 2)
        means = F.avg_pool3d(x_BCTHW, (3, 1, 1), stride=(2, 1, 1))
        if not self.residual:
            return means
        share = self.mix_factor.sigmoid()
        return share * means + (1 - share) * self.conv(x_BCTHW)


class TimeUpsample(nn.Module):
    """Makes n + 1 frames 2n + 1: linear between frames, the first left as it is; `residual` mixes in a convolution."""

    def __init__(self, channels: int, *, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        if residual:
            self.mix_factor = nn.Parameter(torch.tensor([2.0]))
            self.conv = CausalConv3d(channels, channels, kernel_size=(3, 3, 3))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Returns [B, C, 2T - 1, H, W]."""
        if x_BCTHW.shape[2] > 1:
            later = F.interpolate(x_BCTHW[:, :, 1:], scale_factor=(2.0, 1.0, 1.0), mode="trilinear")
            x_BCTHW = torch.cat([x_BCTHW[:, :, :1], later], dim=2)
        if not self.residual:
            return x_BCTHW
        share = self.mix_factor.sigmoid()
        return share * x_BCTHW + (1 - share) * self.conv(x_BCTHW)
