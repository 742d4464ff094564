"""HunyuanVideo's decoder, and how it is made faster on a GPU.

Its norms and its one attention see all pixels of a tile, so it is cut into tiles that overlap and fade, as in the library.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pab.library.fast_decode import MOST_LATENTS, FastDecoder, NormedBlock, frames_attention, use_half
from pab.library.vae import TiledCodec, open_codec

LATENT_CHANNELS = 16
LATENT_BYTES = 5.5e5
"""Held for each latent while a tile is decoded: counted, 256 channels of 4 x 8 x 8 places in 16 bits, four times."""


def hunyuan_codec(vae: Any, _dtype: torch.dtype) -> TiledCodec:
    """Returns the decoder of a loaded VAE."""
    return open_codec(
        vae,
        strides=(vae.temporal_compression_ratio, vae.spatial_compression_ratio),
        channels=LATENT_CHANNELS,
        unscale=lambda latents, _request: latents / vae.config.scaling_factor,
        fast=FastDecoder(
            prepare=lambda: speed_up(vae),
            latent_bytes=LATENT_BYTES,
            most_latents=MOST_LATENTS,
            compiled=lambda: _compiled(vae.decoder),
        ),
    )


def speed_up(vae: Any) -> None:
    """Has the decoder compute in float16, as the library recommends; bfloat16 is off by more than 1 of 255."""
    use_half(vae, torch.float16)
    decoder: Any = vae.decoder
    decoder.mid_block = MiddleBlock(decoder.mid_block)
    for block in decoder.up_blocks:
        block.resnets = nn.ModuleList(map(NormedBlock, block.resnets))


def _compiled(decoder: Any) -> list[nn.Module]:
    blocks = [*decoder.mid_block.resnets]
    for block in decoder.up_blocks:
        blocks += [*block.resnets, *(block.upsamplers or ())]
    return blocks


class MiddleBlock(nn.Module):
    """Stands in for the middle block: its attention goes frame by frame, without a mask of all pairs of pixels."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.attentions = block.attentions
        self.resnets = nn.ModuleList(map(NormedBlock, block.resnets))

    def forward(self, x: Tensor) -> Tensor:
        """Returns a tensor of the shape of x [B, C, T, H, W]."""
        x = self.resnets[0](x)
        for attention, block in zip(self.attentions, self.resnets[1:], strict=True):
            x = block(x if attention is None else _attended(attention, x))
        return x


def _attended(attention: Any, x: Tensor) -> Tensor:
    size = x.shape[2:]
    tokens_BCN = x.flatten(2)
    normed = attention.group_norm(tokens_BCN).transpose(1, 2)
    found = frames_attention(
        attention.to_q(normed), attention.to_k(normed), attention.to_v(normed), frames=size[0]
    )  # fmt: skip
    return (tokens_BCN + attention.to_out[0](found).transpose(1, 2)).unflatten(2, size)
