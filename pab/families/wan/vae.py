"""Wan's decoder as the diffusers library has it, frame by frame, and how it is made faster on a GPU and cut into slices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pab.library.fast_decode import FastDecoder, PixelNorm, decoder_dtype, use_half
from pab.library.slices import DOUBLE, SlicedDecoder, Tail, halo_of
from pab.library.vae import TiledCodec, open_codec

TAIL_LEVELS = 2
"""Levels of the decoder that run in slices: of its time and memory they take most, and see few columns beyond a slice."""
LATENT_BYTES = 8.0e5
"""5.0 GB of 60 x 104 latents (one H100, 81 frames 480x832)."""


def wan_codec(vae: Any, _dtype: torch.dtype) -> TiledCodec:
    """Returns the decoder of a loaded VAE."""
    patch = vae.config.patch_size or 1
    mean, std = latent_statistics(vae)
    return open_codec(
        vae,
        strides=(vae.config.scale_factor_temporal, vae.config.scale_factor_spatial // patch),
        patch=patch,
        channels=vae.config.z_dim,
        unscale=lambda latents, _request: latents / (1.0 / std) + mean,
        decode=lambda _index, tile, _request: decode_tile(vae, tile.to(decoder_dtype(vae))),
        fast=FastDecoder(
            prepare=lambda: speed_up(vae), latent_bytes=LATENT_BYTES, frames_at_once=1, slices=sliced_decoder(vae)
        ),
    )


def latent_statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation of a VAE's latents, [1, C, 1, 1, 1] each."""
    mean, std = (
        torch.tensor(values, device=vae.device).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std


def decode_tile(vae: Any, tile_BCTHW: Tensor) -> Tensor:
    """Decodes latent frames one by one, each with what the ones before left in the VAE.

    As the library's own `decode` does, but for cutting off what is beyond the range of pixels, which comes after fading.
    """
    vae.clear_cache()
    latents = vae.post_quant_conv(tile_BCTHW)
    frames = []
    for at in range(latents.shape[2]):
        vae._conv_idx = [0]
        frame = latents[:, :, at : at + 1]
        frames.append(vae.decoder(frame, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=at == 0))
    vae.clear_cache()
    return torch.cat(frames, dim=2)


def sliced_decoder(vae: Any) -> SlicedDecoder:
    """Returns the decoder cut before its last levels. Together its parts make what `decode_tile` makes."""
    decoder: Any = vae.decoder
    cut = max(len(decoder.up_blocks) - TAIL_LEVELS, 0)
    count = sum(isinstance(module, nn.Conv3d) for module in decoder.modules())

    def head(latents: Tensor) -> Iterator[Tensor]:
        memory = _FrameMemory(frames=[None] * count)
        latents = vae.post_quant_conv(latents.to(decoder_dtype(vae)))
        for at in range(latents.shape[2]):
            memory.begin()
            x = memory.convolve(decoder.conv_in, latents[:, :, at : at + 1])
            x = decoder.mid_block(x, feat_cache=memory.frames, feat_idx=memory.place)
            yield _up(decoder.up_blocks[:cut], x, memory)

    def open_tail() -> Tail:
        memory = _FrameMemory(frames=[None] * count)

        def tail(features: Tensor) -> Tensor:
            memory.begin()
            x = _up(decoder.up_blocks[cut:], features, memory)
            return memory.convolve(decoder.conv_out, decoder.nonlinearity(decoder.norm_out(x)))

        return tail

    steps: list[int | str] = []
    for block in decoder.up_blocks[cut:]:
        steps += [2 * len(block.resnets), *((DOUBLE, 1) if _doubles(block) else ())]
    scale = 2 ** sum(map(_doubles, decoder.up_blocks[:cut]))
    return SlicedDecoder(head=head, open_tail=open_tail, scale=scale, halo=halo_of([*steps, 1]))


def _doubles(block: Any) -> bool:
    """Returns whether a level doubles height and width at its end; Wan 2.2 has another name for what does."""
    return getattr(block, "upsamplers", None) is not None or getattr(block, "upsampler", None) is not None


def _up(blocks: Sequence[Any], x: Tensor, memory: _FrameMemory) -> Tensor:
    for block in blocks:
        x = block(x, feat_cache=memory.frames, feat_idx=memory.place, first_chunk=memory.is_first)
    return x


@dataclass(slots=True, kw_only=True)
class _FrameMemory:
    """What the convolutions of one part have seen of earlier frames, in the form in which the library's modules take it."""

    frames: list[Any]
    place: list[int] = field(default_factory=lambda: [0])
    chunks: int = 0

    @property
    def is_first(self) -> bool:
        return self.chunks == 1

    def begin(self) -> None:
        self.place[0] = 0
        self.chunks += 1

    def convolve(self, convolution: Any, x: Tensor) -> Tensor:
        """Convolves a chunk behind the two frames before it."""
        at = self.place[0]
        before = self.frames[at]
        last = x[:, :, -2:]
        if last.shape[2] < 2 and before is not None:
            last = torch.cat([before[:, :, -1:], last], dim=2)
        self.frames[at] = last.clone()
        self.place[0] += 1
        found: Tensor = convolution(x, before)
        return found


def speed_up(vae: Any) -> None:
    """Has the decoder compute in bfloat16 with channels last in memory, norm and SiLU as one operation."""
    use_half(vae)
    for module in list(vae.decoder.modules()):
        if hasattr(module, "nonlinearity"):
            for name in ("norm1", "norm2", "norm_out"):
                if hasattr(module, name):
                    setattr(module, name, _pixel_norm(getattr(module, name), silu=True))
            module.nonlinearity = nn.Identity()
        elif hasattr(module, "to_qkv"):
            module.norm = _pixel_norm(module.norm, silu=False)
        elif isinstance(module, nn.Sequential) and isinstance(module[0], nn.Upsample):
            # The library repeats pixels in float32, which changes none.
            module[0] = nn.Upsample(scale_factor=module[0].scale_factor, mode=module[0].mode)


def _pixel_norm(norm: Any, *, silu: bool) -> PixelNorm:
    assert norm.channel_first, "pixels have their channels in dim 1"
    return PixelNorm(norm.gamma, silu=silu)
