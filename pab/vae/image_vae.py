"""The 2-D image VAE of Stable Diffusion's layout: four levels, one attention in the middle, 8x8 pixels to a latent.

Published checkpoints load by their own key names. Shape letters: N images, C channels, H, W.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageVAEConfig:
    """Sizes of one image VAE; the defaults are those of Stable Diffusion's."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    latent_channels: int = 4

    def __post_init__(self) -> None:
        uneven = [width for width in self.block_out_channels if width % self.norm_num_groups]
        if uneven:
            raise ValueError(
                f"block_out_channels {uneven[0]} does not divide by norm_num_groups={self.norm_num_groups}"
            )

    @property
    def stride(self) -> int:
        """Pixels per latent along height and width."""
        return 2 ** (len(self.block_out_channels) - 1)


class ResnetBlock(nn.Module):
    """Two normed convolutions beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=NORM_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Returns [N, out_channels, H, W]."""
        hidden = self.conv1(F.silu(self.norm1(x_NCHW)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return hidden + (x_NCHW if self.conv_shortcut is None else self.conv_shortcut(x_NCHW))


class ImageAttention(nn.Module):
    """Single-head attention over the pixels of one image."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Returns the input plus what each pixel attends to."""
        tokens = self.group_norm(x_NCHW).flatten(2).transpose(1, 2)[:, None]
        attended = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return x_NCHW + self.to_out[0](attended)[:, 0].transpose(1, 2).reshape(x_NCHW.shape)


class MidBlock(nn.Module):
    """The narrowest part: a residual block, attention, a residual block."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([ImageAttention(channels, groups)])
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups) for _ in range(2))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Returns a tensor of the input's shape."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x_NCHW)))


class Downsampler(nn.Module):
    """Halves height and width by a strided convolution, with one zero row below and one zero column at the right."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Returns [N, C, H/2, W/2]."""
        return self.conv(F.pad(x_NCHW, [0, 1, 0, 1]))


class Upsampler(nn.Module):
    """Doubles height and width by repeating pixels, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Returns [N, C, 2H, 2W]."""
        return self.conv(F.interpolate(x_NCHW, scale_factor=2.0, mode="nearest"))


class DownBlock(nn.Module):
    """One level of the encoder."""

    def __init__(self, widths: tuple[int, int], *, config: ImageVAEConfig, last: bool) -> None:
        super().__init__()
        before, width = widths
        groups = config.norm_num_groups
        self.resnets = nn.ModuleList(
            ResnetBlock(before if i == 0 else width, width, groups) for i in range(config.layers_per_block)
        )
        self.downsamplers = nn.ModuleList([] if last else [Downsampler(width)])

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Returns [N, width, H/2, W/2]; the last level keeps H and W."""
        for layer in (*self.resnets, *self.downsamplers):
            x_NCHW = layer(x_NCHW)
        return x_NCHW


class UpBlock(nn.Module):
    """One level of the decoder."""

    def __init__(self, widths: tuple[int, int], *, config: ImageVAEConfig, last: bool) -> None:
        super().__init__()
        before, width = widths
        groups = config.norm_num_groups
        self.resnets = nn.ModuleList(
            ResnetBlock(before if i == 0 else width, width, groups) for i in range(config.layers_per_block + 1)
        )
        self.upsamplers = nn.ModuleList([] if last else [Upsampler(width)])

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Returns [N, width, 2H, 2W]; the last level keeps H and W."""
        for layer in (*self.resnets, *self.upsamplers):
            x_NCHW = layer(x_NCHW)
        return x_NCHW


class ImageEncoder(nn.Module):
    """Images to the mean and log variance of latents."""

    def __init__(self, config: ImageVAEConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        groups = config.norm_num_groups
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        pairs = list(zip((widths[0], *widths), widths, strict=False))
        self.down_blocks = nn.ModuleList(
            DownBlock(pair, config=config, last=i == len(pairs) - 1) for i, pair in enumerate(pairs)
        )
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Returns [N, 2 * latent_channels, H/8, W/8]."""
        x_NCHW = self.conv_in(x_NCHW)
        for block in self.down_blocks:
            x_NCHW = block(x_NCHW)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x_NCHW))))


class ImageDecoder(nn.Module):
    """Latents to images."""

    def __init__(self, config: ImageVAEConfig) -> None:
        super().__init__()
        widths = config.block_out_channels[::-1]
        groups = config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        pairs = list(zip((widths[0], *widths), widths, strict=False))
        self.up_blocks = nn.ModuleList(
            UpBlock(pair, config=config, last=i == len(pairs) - 1) for i, pair in enumerate(pairs)
        )
        self.mid_block = MidBlock(widths[0], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z_NCHW: Tensor) -> Tensor:
        """Returns [N, 3, 8H, 8W]."""
        x = self.mid_block(self.conv_in(z_NCHW))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class ImageVAE(nn.Module):
    """Encoder and decoder with the 1x1 convolutions around the latents. Latents are unscaled."""

    def __init__(self, config: ImageVAEConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.encoder = ImageEncoder(config)
        self.decoder = ImageDecoder(config)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)

    def encode(self, x_NCHW: Tensor) -> Posterior:
        """Returns the distribution of latents of images in -1..1."""
        return Posterior(self.quant_conv(self.encoder(x_NCHW)))

    def decode(self, z_NCHW: Tensor) -> Tensor:
        """Returns images [N, 3, 8H, 8W], about -1..1."""
        return self.decoder(self.post_quant_conv(z_NCHW))


@dataclass(frozen=True, slots=True)
class Posterior:
    """A diagonal Gaussian over latents; `moments` holds means, then log variances, in dim 1."""

    moments: Tensor

    @property
    def mean(self) -> Tensor:
        """The means."""
        return self.moments.chunk(2, dim=1)[0]

    @property
    def logvar(self) -> Tensor:
        """The log variances, within -30..20."""
        return self.moments.chunk(2, dim=1)[1].clamp(-30.0, 20.0)

    def sample(self, noise: Tensor) -> Tensor:
        """Returns the latents that standard normal `noise` of the means' shape stands for."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.moments)
