"""Open-Sora-Plan 1.1's causal VAE: 4n + 1 frames to n + 1 latent frames, 8x8 pixels to a latent, by causal convolutions.

Published checkpoints load by their own key names, and `CausalVAEConfig` reads the published configuration.
Shape letters: B clips, C channels, T frames, H, W.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import torch.nn.functional as F
from torch import Tensor, nn

from pab.families.open_sora_plan.causal_layers import (
    FrameAttention,
    ResnetBlock,
    SpatialDownsample,
    SpatialUpsample,
    TimeDownsample,
    TimeUpsample,
    conv,
    group_norm,
)
from pab.families.open_sora_plan.causal_tiles import Tiling
from pab.parallel.mesh import Axis
from pab.vae.image_vae import Posterior
from pab.vae.tiles import tiled_decode, tiled_map

LATENT_SCALE = 0.18215
FLAT, DEEP = "ResnetBlock2D", "ResnetBlock3D"


@dataclass(frozen=True, slots=True, kw_only=True)
class CausalVAEConfig:
    """A published configuration, in its own words; the defaults are release 1.1.0's.

    Per level: residual blocks, and what halves or doubles space and time ("" for nothing).
    """

    hidden_size: int = 128
    hidden_size_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 4
    embed_dim: int = 4
    q_conv: str = "CausalConv3d"
    encoder_conv_in: str = "Conv2d"
    encoder_conv_out: str = "CausalConv3d"
    encoder_attention: str = "AttnBlock3DFix"
    encoder_resnet_blocks: tuple[str, ...] = (FLAT, FLAT, DEEP, DEEP)
    encoder_spatial_downsample: tuple[str, ...] = ("Downsample", "Downsample", "Downsample", "")
    encoder_temporal_downsample: tuple[str, ...] = ("", "TimeDownsampleRes2x", "TimeDownsampleRes2x", "")
    encoder_mid_resnet: str = DEEP
    decoder_conv_in: str = "CausalConv3d"
    decoder_conv_out: str = "CausalConv3d"
    decoder_attention: str = "AttnBlock3DFix"
    decoder_resnet_blocks: tuple[str, ...] = (DEEP, DEEP, DEEP, DEEP)
    decoder_spatial_upsample: tuple[str, ...] = ("", "SpatialUpsample2x", "SpatialUpsample2x", "SpatialUpsample2x")
    decoder_temporal_upsample: tuple[str, ...] = ("", "", "TimeUpsampleRes2x", "TimeUpsampleRes2x")
    decoder_mid_resnet: str = DEEP

    @classmethod
    def from_published(cls, values: Mapping[str, object]) -> CausalVAEConfig:
        """Reads a published `config.json`. Raises ValueError for attention inside levels, which no release has."""
        if values.get("attn_resolutions"):
            raise ValueError(f"attn_resolutions={values['attn_resolutions']}, needs to be empty")
        names = {field.name for field in fields(cls)}
        known = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items() if key in names}
        return cls(**known)  # type: ignore[arg-type]

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels per level."""
        return tuple(self.hidden_size * multiplier for multiplier in self.hidden_size_mult)

    @property
    def time_stride(self) -> int:
        """Frames per latent frame after the first."""
        return 2 ** sum(bool(name) for name in self.decoder_temporal_upsample)

    @property
    def space_stride(self) -> int:
        """Pixels per latent along height and width."""
        return 2 ** sum(bool(name) for name in self.decoder_spatial_upsample)


def _resnet(kind: str, in_channels: int, out_channels: int) -> nn.Module:
    if kind not in (FLAT, DEEP):
        raise ValueError(f"residual block {kind!r} is not known, allowed {FLAT}, {DEEP}")
    return ResnetBlock(in_channels, out_channels, flat=kind == FLAT)


def _attention(kind: str, channels: int) -> nn.Module:
    variants = {"AttnBlock3DFix": False, "AttnBlock3D": True}
    if kind not in variants:
        raise ValueError(f"attention {kind!r} is not known, allowed {', '.join(variants)}")
    return FrameAttention(channels, mixed=variants[kind])


def _resampler(kind: str, channels: int) -> nn.Module:
    """Returns what a configuration names for halving or doubling space or time."""
    makers: dict[str, Callable[[], nn.Module]] = {
        "Downsample": lambda: SpatialDownsample(channels, flat=True),
        "SpatialDownsample2x": lambda: SpatialDownsample(channels, flat=False),
        "SpatialUpsample2x": lambda: SpatialUpsample(channels),
        "TimeDownsample2x": lambda: TimeDownsample(channels, residual=False),
        "TimeDownsampleRes2x": lambda: TimeDownsample(channels, residual=True),
        "TimeUpsample2x": lambda: TimeUpsample(channels, residual=False),
        "TimeUpsampleRes2x": lambda: TimeUpsample(channels, residual=True),
        "": nn.Identity,
    }
    if kind not in makers:
        raise ValueError(f"resampling {kind!r} is not known, allowed {', '.join(name for name in makers if name)}")
    return makers[kind]()


class Middle(nn.Module):
    """The narrowest part: a residual block, attention, a residual block."""

    def __init__(self, channels: int, *, resnet: str, attention: str) -> None:
        super().__init__()
        self.block_1 = _resnet(resnet, channels, channels)
        self.attn_1 = _attention(attention, channels)
        self.block_2 = _resnet(resnet, channels, channels)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Returns a tensor of the input's shape."""
        return self.block_2(self.attn_1(self.block_1(x_BCTHW)))


class DownLevel(nn.Module):
    """One level of the encoder."""

    def __init__(self, config: CausalVAEConfig, level: int) -> None:
        super().__init__()
        widths = config.widths
        width, before = widths[level], widths[max(level - 1, 0)]
        kind = config.encoder_resnet_blocks[level]
        self.block = nn.ModuleList(
            _resnet(kind, before if i == 0 else width, width) for i in range(config.num_res_blocks)
        )
        self.downsample = _resampler(config.encoder_spatial_downsample[level], width)
        self.time_downsample = _resampler(config.encoder_temporal_downsample[level], width)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Returns the level's features, smaller where it halves space or time."""
        for block in self.block:
            x_BCTHW = block(x_BCTHW)
        return self.time_downsample(self.downsample(x_BCTHW))


class UpLevel(nn.Module):
    """One level of the decoder."""

    def __init__(self, config: CausalVAEConfig, level: int) -> None:
        super().__init__()
        widths = config.widths
        width, before = widths[level], widths[min(level + 1, len(widths) - 1)]
        kind = config.decoder_resnet_blocks[level]
        self.block = nn.ModuleList(
            _resnet(kind, before if i == 0 else width, width) for i in range(config.num_res_blocks + 1)
        )
        self.upsample = _resampler(config.decoder_spatial_upsample[level], width)
        self.time_upsample = _resampler(config.decoder_temporal_upsample[level], width)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Returns the level's features, larger where it doubles space or time."""
        for block in self.block:
            x_BCTHW = block(x_BCTHW)
        return self.time_upsample(self.upsample(x_BCTHW))


class CausalEncoder(nn.Module):
    """Pixels to the moments of latents, before the convolution around the latents."""

    def __init__(self, config: CausalVAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = conv(config.encoder_conv_in, 3, config.hidden_size, kernel_size=3)
        self.down = nn.ModuleList(DownLevel(config, level) for level in range(len(widths)))
        self.mid = Middle(widths[-1], resnet=config.encoder_mid_resnet, attention=config.encoder_attention)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = conv(config.encoder_conv_out, widths[-1], 2 * config.z_channels, kernel_size=3)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Returns [B, 2 * z_channels, n + 1, H/8, W/8]."""
        x_BCTHW = self.conv_in(x_BCTHW)
        for level in self.down:
            x_BCTHW = level(x_BCTHW)
        return self.conv_out(F.silu(self.norm_out(self.mid(x_BCTHW))))


class CausalDecoder(nn.Module):
    """Latents to pixels, after the convolution around the latents."""

    def __init__(self, config: CausalVAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = conv(config.decoder_conv_in, config.z_channels, widths[-1], kernel_size=3)
        self.mid = Middle(widths[-1], resnet=config.decoder_mid_resnet, attention=config.decoder_attention)
        self.up = nn.ModuleList(UpLevel(config, level) for level in range(len(widths)))
        self.norm_out = group_norm(widths[0])
        self.conv_out = conv(config.decoder_conv_out, widths[0], 3, kernel_size=3)

    def forward(self, z_BCTHW: Tensor) -> Tensor:
        """Returns [B, 3, 4n + 1, 8H, 8W]."""
        x = self.mid(self.conv_in(z_BCTHW))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class CausalVAE(nn.Module):
    """Pixels [B, 3, 4n + 1, H, W] in -1..1 to latents [B, 4, n + 1, H/8, W/8] (scaled by 0.18215) and back."""

    def __init__(self, config: CausalVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = CausalEncoder(config)
        self.decoder = CausalDecoder(config)
        self.quant_conv = conv(config.q_conv, 2 * config.z_channels, 2 * config.embed_dim, kernel_size=1)
        self.post_quant_conv = conv(config.q_conv, config.embed_dim, config.z_channels, kernel_size=1)

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        """Returns (C, T, H, W) of a clip's latents. Raises ValueError unless `num_frames` is 4n + 1."""
        time, space = self.config.time_stride, self.config.space_stride
        if num_frames % time != 1:
            raise ValueError(f"num_frames={num_frames}, the causal VAE needs {time}n+1 (1, {time + 1}, {2 * time + 1})")
        return self.config.embed_dim, num_frames // time + 1, height // space, width // space

    def encode(self, x_BCTHW: Tensor, *, tiling: Tiling | None = None) -> Posterior:
        """Returns the distribution of unscaled latents; multiply a sample or the mean by `LATENT_SCALE`.

        With `tiling`, pixels larger than a tile are encoded in overlapping tiles.
        """
        if tiling is None:
            return Posterior(self._encode(x_BCTHW))
        return Posterior(tiled_map(self._encode, x_BCTHW, grid=tiling.encode_grid()))

    def decode(self, z_BCTHW: Tensor, *, tiling: Tiling | None = None, axis: Axis | None = None) -> Tensor | None:
        """Returns pixels [B, T, 3, H, W], about -1..1, on the CPU of the axis' rank 0; None on the others. Collective.

        With `tiling`, latents larger than a tile are decoded in overlapping tiles, dealt to the ranks.
        """
        unscaled = z_BCTHW.to(next(self.parameters()).dtype) / LATENT_SCALE
        grid = (tiling or Tiling()).grid((self.config.time_stride, self.config.space_stride))
        pixels = tiled_decode(
            lambda _, latents: self._decode(latents), unscaled, grid=grid, axis=axis or Axis(), tiled=tiling is not None
        )
        return None if pixels is None else pixels.transpose(1, 2)

    def _encode(self, x_BCTHW: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(x_BCTHW))

    def _decode(self, z_BCTHW: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z_BCTHW))
