"""CogVideoX's decoder, a few frames at a time, and how it is made faster on a GPU.

Its norms see the whole picture, so it is cut into tiles that overlap and fade, as the library does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pab.families.cogvideox.config import LATENT_CHANNELS
from pab.library.fast_decode import MOST_LATENTS, FastDecoder, use_half
from pab.library.vae import TiledCodec, open_codec

LATENT_BYTES = 6.0e5
"""Held for each latent of the frames that are decoded at once: counted, 256 channels of 4 x 8 x 8 places in 16 bits, four
times and a half."""
FRAMES_AT_ONCE = 3
"""Latent frames: the first time three, then two."""


def cogvideox_codec(vae: Any, dtype: torch.dtype) -> TiledCodec:
    """Returns the decoder of a loaded VAE, in the model's precision."""
    return open_codec(
        vae,
        strides=(vae.config.temporal_compression_ratio, 2 ** (len(vae.config.block_out_channels) - 1)),
        channels=LATENT_CHANNELS,
        unscale=lambda latents, _request: 1 / vae.config.scaling_factor * latents.to(dtype),
        fast=FastDecoder(
            prepare=lambda: speed_up(vae),
            latent_bytes=LATENT_BYTES,
            most_latents=MOST_LATENTS,
            frames_at_once=FRAMES_AT_ONCE,
            compiled=lambda: _compiled(vae.decoder),
        ),
    )


def speed_up(vae: Any) -> None:
    """Has the decoder compute in bfloat16, and what its norms are scaled and shifted by at the size of the latents."""
    use_half(vae)
    decoder: Any = vae.decoder
    for block in _residual_blocks(decoder):
        block.norm1, block.norm2 = LatentNorm(block.norm1), LatentNorm(block.norm2)
    decoder.norm_out = LatentNorm(decoder.norm_out)


def _residual_blocks(decoder: Any) -> list[Any]:
    return [*decoder.mid_block.resnets, *(block for level in decoder.up_blocks for block in level.resnets)]


def _compiled(decoder: Any) -> list[nn.Module]:
    return [*_residual_blocks(decoder), *(up for level in decoder.up_blocks for up in level.upsamplers or ())]


class LatentNorm(nn.Module):
    """Stands in for a norm that latents scale and shift.

    The library brings the latents to the size of the features and then multiplies each place by a matrix; the other way round
    the numbers are the same, and the matrix has few places.
    """

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.norm_layer, self.conv_y, self.conv_b = norm.norm_layer, norm.conv_y.conv, norm.conv_b.conv

    def forward(
        self, f: Tensor, zq: Tensor, conv_cache: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Returns f [B, C, T, H, W], normed, scaled and shifted by latents zq; and an empty cache."""
        scale, shift = (_brought(convolution(zq), f) for convolution in (self.conv_y, self.conv_b))
        return self.norm_layer(f) * scale + shift, {}


def _brought(x: Tensor, like: Tensor) -> Tensor:
    """Repeats places of x up to the size of `like`; the first of an odd number of frames stays alone."""
    frames, *sides = like.shape[2:]
    if frames == 1 or frames % 2 == 0:
        return F.interpolate(x, size=(frames, *sides))
    first = F.interpolate(x[:, :, :1], size=(1, *sides))
    return torch.cat([first, F.interpolate(x[:, :, 1:], size=(frames - 1, *sides))], dim=2)
