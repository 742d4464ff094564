"""HunyuanVideo 1.5's decoder, and how it is made faster on a GPU, a few frames at a time and in slices.

The library decodes all frames of a tile at once. Convolutions see earlier frames alone and norms single pixels, so all
behind the attention in the middle can go frame by frame, each with what convolutions have seen of those before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pab.library.fast_decode import FastDecoder, PixelNorm, decoder_dtype, frames_attention, use_half
from pab.library.slices import DOUBLE, SlicedDecoder, Tail, halo_of
from pab.library.vae import TiledCodec, open_codec

LATENT_CHANNELS = 32
TAIL_LEVELS = 2
"""Levels of the decoder that run in slices: of its time and memory they take most, and see few columns beyond a slice."""
LATENT_BYTES = 4.0e6
"""Held for each latent of a frame: counted, 128 channels of 4 x 16 x 16 places in 16 bits 11 times, and two frames of each
convolution."""


def hunyuan_15_codec(vae: Any, dtype: torch.dtype) -> TiledCodec:
    """Returns the decoder of a loaded VAE, in the model's precision."""
    memory = FrameMemory()
    return open_codec(
        vae,
        strides=(vae.temporal_compression_ratio, vae.spatial_compression_ratio),
        channels=LATENT_CHANNELS,
        unscale=lambda latents, _request: latents.to(dtype) / vae.config.scaling_factor,
        fast=FastDecoder(
            prepare=lambda: speed_up(vae, memory),
            latent_bytes=LATENT_BYTES,
            frames_at_once=1,
            slices=sliced_decoder(vae, memory),
        ),
    )


@dataclass(slots=True)
class FrameMemory:
    """The frames that each convolution saw last; None while all frames of a clip are given at once.

    It is set for the length of a call, so nothing of one slice reaches another.
    """

    seen: dict[nn.Module, Tensor] | None = None


def speed_up(vae: Any, memory: FrameMemory) -> None:
    """Has the decoder compute in bfloat16, norm and SiLU as one operation, and frame by frame."""
    use_half(vae)
    decoder: Any = vae.decoder
    for block in [module for module in decoder.modules() if hasattr(module, "norm1")]:
        block.norm1, block.norm2 = (PixelNorm(norm.gamma, silu=True) for norm in (block.norm1, block.norm2))
        block.nonlinearity = nn.Identity()
    decoder.norm_out, decoder.conv_act = PixelNorm(decoder.norm_out.gamma, silu=True), nn.Identity()
    for attention in decoder.mid_block.attentions:
        if attention is not None:
            attention.norm = PixelNorm(attention.norm.gamma, silu=False)
    go_by_frames(decoder, memory)


def go_by_frames(decoder: Any, memory: FrameMemory) -> None:
    """Has the decoder's parts go frame by frame where `memory` says so; its numbers stay as they are."""
    decoder.conv_in, decoder.conv_out = (FrameConv(each, memory) for each in (decoder.conv_in, decoder.conv_out))
    for module in list(decoder.modules()):
        for name in ("conv1", "conv2"):
            if hasattr(module, name):
                setattr(module, name, FrameConv(getattr(module, name), memory))
    for level in decoder.up_blocks:
        level.upsamplers = None if level.upsamplers is None else nn.ModuleList(
            FrameUpsample(each, memory) for each in level.upsamplers
        )  # fmt: skip
    decoder.mid_block.attentions = nn.ModuleList(map(FrameAttention, decoder.mid_block.attentions))


def sliced_decoder(vae: Any, memory: FrameMemory) -> SlicedDecoder:
    """Returns the decoder cut before its last levels; call `go_by_frames` before it is used."""
    decoder: Any = vae.decoder
    cut = max(len(decoder.up_blocks) - TAIL_LEVELS, 0)

    def through(blocks: Sequence[Any], x: Tensor, seen: dict[nn.Module, Tensor], *, last: bool) -> Tensor:
        memory.seen = seen
        try:
            for block in blocks:
                x = block(x)
            return decoder.conv_out(decoder.conv_act(decoder.norm_out(x))) if last else x
        finally:
            memory.seen = None

    def head(latents: Tensor) -> Iterator[Tensor]:
        latents = latents.to(decoder_dtype(vae))
        x = decoder.conv_in(latents) + latents.repeat_interleave(decoder.repeat, dim=1)
        x = decoder.mid_block(x)
        seen: dict[nn.Module, Tensor] = {}
        for frame in x.split(1, dim=2):
            yield through(decoder.up_blocks[:cut], frame, seen, last=False)

    def open_tail() -> Tail:
        seen: dict[nn.Module, Tensor] = {}
        return lambda features: through(decoder.up_blocks[cut:], features, seen, last=True)

    steps: list[int | str] = []
    for block in decoder.up_blocks[cut:]:
        steps += [2 * len(block.resnets), *((1, DOUBLE) if block.upsamplers is not None else ())]
    scale = 2 ** sum(block.upsamplers is not None for block in decoder.up_blocks[:cut])
    return SlicedDecoder(head=head, open_tail=open_tail, scale=scale, halo=halo_of([*steps, 1]))


class FrameConv(nn.Module):
    """Stands in for a causal convolution: before a chunk are the frames that it saw last, or its first one, repeated."""

    def __init__(self, convolution: Any, memory: FrameMemory) -> None:
        super().__init__()
        self.conv = convolution.conv
        self.memory = memory

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, C', T, H, W] of a chunk x [B, C, T, H, W]."""
        time, height, width = self.conv.kernel_size
        seen = self.memory.seen
        before = None if seen is None else seen.get(self)
        padded = with_edges(x, before, frames=time - 1, rows=height // 2, columns=width // 2)
        if seen is not None and time > 1:
            last = torch.cat([before, x], dim=2) if before is not None and x.shape[2] < time - 1 else x
            missing = time - 1 - last.shape[2]
            if missing > 0:
                last = torch.cat([last[:, :, :1].expand(-1, -1, missing, -1, -1), last], dim=2)
            seen[self] = last[:, :, 1 - time :].clone()
        found: Tensor = self.conv(padded)
        return found


def with_edges(x: Tensor, before: Tensor | None, *, frames: int, rows: int, columns: int) -> Tensor:
    """Returns x [B, C, T, H, W] behind so many frames, its outermost rows and columns repeated.

    `before`: these frames; None: the first one of x, repeated. Channels stay where they are in memory.
    """
    batch, channels, time, height, width = x.shape
    form = torch.channels_last_3d if x.is_contiguous(memory_format=torch.channels_last_3d) else torch.contiguous_format
    shape = batch, channels, time + frames, height + 2 * rows, width + 2 * columns
    padded = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=form)
    inner = padded[:, :, :, rows : rows + height, columns : columns + width]
    inner[:, :, frames:] = x
    if frames:
        inner[:, :, :frames] = x[:, :, :1] if before is None else before
    inside = padded[:, :, :, rows : rows + height]
    if columns:
        inside[..., :columns] = inside[..., columns : columns + 1]
        inside[..., -columns:] = inside[..., -columns - 1 : -columns]
    if rows:
        padded[:, :, :, :rows] = padded[:, :, :, rows : rows + 1]
        padded[:, :, :, -rows:] = padded[:, :, :, -rows - 1 : -rows]
    return padded


class FrameUpsample(nn.Module):
    """Stands in for what doubles the size: the first frame of a clip stays one frame, of any other come two."""

    def __init__(self, upsample: Any, memory: FrameMemory) -> None:
        super().__init__()
        self.library = upsample
        self.library.conv = FrameConv(upsample.conv, memory)
        self.memory = memory

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, C', T', 2H, 2W] of a chunk x [B, C, T, H, W]."""
        begins = self.memory.seen is None or self.library.conv not in self.memory.seen
        if begins or not self.library.add_temporal_upsample:
            found: Tensor = self.library(x)
            return found
        spread = self.library._dcae_upsample_rearrange
        shortcut = spread(x, r1=2, r2=2, r3=2).repeat_interleave(repeats=self.library.repeats, dim=1)
        return spread(self.library.conv(x), r1=2, r2=2, r3=2) + shortcut


class FrameAttention(nn.Module):
    """Stands in for the attention in the middle: frame by frame, without a mask of all pairs of pixels."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.library = attention

    def forward(self, x: Tensor) -> Tensor:
        """Returns a tensor of the shape of x [B, C, T, H, W]."""
        normed = self.library.norm(x)
        queries, keys, values = (
            each(normed).flatten(2).transpose(1, 2)
            for each in (self.library.to_q, self.library.to_k, self.library.to_v)
        )
        found = frames_attention(queries, keys, values, frames=x.shape[2])
        return x + self.library.proj_out(found.transpose(1, 2).unflatten(2, x.shape[2:]))
