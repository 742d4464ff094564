"""Open-Sora 1.2's temporal VAE: four frames of image latents to one, by causal 3-D convolutions.

A chunk is seen whole: its norms span all its frames, so cutting a clip into other chunks changes the numbers.
Shape letters: B clips, C channels, T frames, H, W.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from pab.vae.image_vae import Posterior


@dataclass(frozen=True, slots=True, kw_only=True)
class TemporalVAEConfig:
    """Sizes of one temporal VAE; the defaults are the published ones. `downsample[i]`: whether time halves after level i."""

    filters: int = 128
    num_res_blocks: int = 4
    num_groups: int = 32
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)
    downsample: tuple[bool, ...] = (False, True, True)
    latent_channels: int = 4

    def __post_init__(self) -> None:
        if len(self.downsample) != len(self.channel_multipliers) - 1:
            raise ValueError(
                f"downsample={self.downsample}, needs one entry less than channel_multipliers={self.channel_multipliers}"
            )
        if self.filters % self.num_groups:
            raise ValueError(f"filters={self.filters}, needs a multiple of num_groups={self.num_groups}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels per level."""
        return tuple(self.filters * multiplier for multiplier in self.channel_multipliers)

    @property
    def stride(self) -> int:
        """Frames per latent frame."""
        return 2 ** sum(self.downsample)


class CausalConv(nn.Module):
    """A 3-D convolution that sees no later frame; zeros stand before the first frame and around the picture."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, time_stride: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        self.time_padding = kernel_size - time_stride
        space = kernel_size // 2
        self.conv = nn.Conv3d(
            in_channels, out_channels, kernel_size, stride=(time_stride, 1, 1), padding=(0, space, space), bias=bias
        )

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Returns [B, out_channels, T/time_stride, H, W]."""
        if self.time_padding > 0:
            x_BCTHW = F.pad(x_BCTHW, [0, 0, 0, 0, self.time_padding, 0])
        return self.conv(x_BCTHW)


class TemporalResBlock(nn.Module):
    """Two normed causal convolutions beside a shortcut; none has a bias."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels)
        self.conv1 = CausalConv(in_channels, out_channels, 3, bias=False)
        self.norm2 = nn.GroupNorm(groups, out_channels)
        self.conv2 = CausalConv(out_channels, out_channels, 3, bias=False)
        self.conv3 = CausalConv(in_channels, out_channels, 1, bias=False) if in_channels != out_channels else None

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Returns [B, out_channels, T, H, W]."""
        hidden = self.conv1(F.silu(self.norm1(x_BCTHW)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return hidden + (x_BCTHW if self.conv3 is None else self.conv3(x_BCTHW))


def _res_blocks(before: int, width: int, config: TemporalVAEConfig) -> nn.ModuleList:
    count = config.num_res_blocks
    return nn.ModuleList(TemporalResBlock(before if i == 0 else width, width, config.num_groups) for i in range(count))


class TemporalEncoder(nn.Module):
    """Image latents to the moments of temporal latents."""

    def __init__(self, config: TemporalVAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = CausalConv(config.latent_channels, config.filters, 3, bias=False)
        pairs = zip((config.filters, *widths), widths, strict=False)
        self.block_res_blocks = nn.ModuleList(_res_blocks(before, width, config) for before, width in pairs)
        self.conv_blocks = nn.ModuleList(
            CausalConv(width, width, 3, time_stride=2) if halves else nn.Identity()
            for width, halves in zip(widths, config.downsample, strict=False)
        )
        self.res_blocks = _res_blocks(widths[-1], widths[-1], config)
        self.norm1 = nn.GroupNorm(config.num_groups, widths[-1])
        self.conv2 = CausalConv(widths[-1], 2 * config.latent_channels, 1)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Returns [B, 2 * latent_channels, T/4, H, W]."""
        x_BCTHW = self.conv_in(x_BCTHW)
        for level, blocks in enumerate(self.block_res_blocks):
            for block in blocks:  # type: ignore[attr-defined]
                x_BCTHW = block(x_BCTHW)
            if level < len(self.conv_blocks):
                x_BCTHW = self.conv_blocks[level](x_BCTHW)
        for block in self.res_blocks:
            x_BCTHW = block(x_BCTHW)
        return self.conv2(F.silu(self.norm1(x_BCTHW)))


class TemporalDecoder(nn.Module):
    """Temporal latents to image latents."""

    def __init__(self, config: TemporalVAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv1 = CausalConv(config.latent_channels, widths[-1], 3)
        self.res_blocks = _res_blocks(widths[-1], widths[-1], config)
        pairs = zip((*widths[1:], widths[-1]), widths, strict=True)
        self.block_res_blocks = nn.ModuleList(_res_blocks(before, width, config) for before, width in pairs)
        self.conv_blocks = nn.ModuleList(
            CausalConv(width, 2 * below, 3) if doubles else nn.Identity()
            for below, width, doubles in zip(widths[1:], widths[1:], config.downsample, strict=True)
        )
        self.norm1 = nn.GroupNorm(config.num_groups, widths[0])
        self.conv_out = CausalConv(widths[0], config.latent_channels, 3)

    def forward(self, z_BCTHW: Tensor) -> Tensor:
        """Returns [B, latent_channels, 4T, H, W]."""
        x = self.conv1(z_BCTHW)
        for block in self.res_blocks:
            x = block(x)
        for level in reversed(range(len(self.block_res_blocks))):
            for block in self.block_res_blocks[level]:  # type: ignore[attr-defined]
                x = block(x)
            if level > 0:
                up = self.conv_blocks[level - 1]
                x = up(x) if isinstance(up, nn.Identity) else _unfold_time(up(x))
        return self.conv_out(F.silu(self.norm1(x)))


def _unfold_time(x_BCTHW: Tensor) -> Tensor:
    """Moves channel pairs into time: [B, 2C, T, H, W] -> [B, C, 2T, H, W], channels 2c and 2c + 1 becoming neighbours."""
    pairs = x_BCTHW.unflatten(1, (-1, 2))
    return pairs.permute(0, 1, 3, 2, 4, 5).flatten(2, 3)


class TemporalVAE(nn.Module):
    """Encodes and decodes one chunk of frames at a time."""

    def __init__(self, config: TemporalVAEConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.encoder = TemporalEncoder(config)
        self.quant_conv = CausalConv(2 * channels, 2 * channels, 1)
        self.post_quant_conv = CausalConv(channels, channels, 1)
        self.decoder = TemporalDecoder(config)

    def latent_frames(self, num_frames: int) -> int:
        """Returns how many latent frames one chunk of frames becomes."""
        return -(-num_frames // self.config.stride)

    def encode(self, x_BCTHW: Tensor) -> Posterior:
        """Returns the distribution of one chunk's latents; zero frames in front fill up its first latent frame."""
        missing = -x_BCTHW.shape[2] % self.config.stride
        return Posterior(self.quant_conv(self.encoder(F.pad(x_BCTHW, [0, 0, 0, 0, missing, 0]))))

    def decode(self, z_BCTHW: Tensor, num_frames: int) -> Tensor:
        """Returns the last `num_frames` frames of one chunk: those in front are the filling."""
        return self.decoder(self.post_quant_conv(z_BCTHW))[:, :, -num_frames:]
