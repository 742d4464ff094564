"""Open-Sora 1.2's VAE: an image VAE frame by frame, and over its latents a temporal VAE in chunks of 17 frames.

The frames of a clip are decoded in micro batches and its time in chunks, so memory does not grow with the clip; both are
dealt to the ranks of the clip. Shape letters: B clips, C channels, T frames, H, W, N frames of a micro batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pab.families.open_sora.temporal_vae import TemporalVAE, TemporalVAEConfig
from pab.model import DecodedFrames
from pab.parallel.mesh import Axis
from pab.parallel.round_robin import round_robin, round_robin_to_root
from pab.vae.image_vae import ImageVAE, ImageVAEConfig
from pab.vae.pixels import pack, packed_shape, unpack

SPATIAL_SCALE = 0.18215

SHIFT = (-0.10, 0.34, 0.27, 0.98)

SCALE = (3.85, 2.32, 2.33, 3.06)

EARLY_FRAMES = 4
"""Frames that a rank decodes while another one decodes a chunk of time, which takes about as long."""

Noise = Callable[[tuple[int, ...]], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSoraVAEConfig:
    """Sizes of one VAE. `chunk_frames`: pixel frames per chunk, None for the whole clip in one; `micro_batch` in frames."""

    spatial: ImageVAEConfig = field(default_factory=ImageVAEConfig)
    temporal: TemporalVAEConfig = field(default_factory=TemporalVAEConfig)
    chunk_frames: int | None = 17
    micro_batch: int = 4


class SpatialVAE(nn.Module):
    """The image VAE under the name that published checkpoints give it."""

    def __init__(self, config: ImageVAEConfig) -> None:
        super().__init__()
        self.module = ImageVAE(config)


class OpenSoraVAE(nn.Module):
    """Pixels [B, 3, T, H, W] in -1..1 to normalised latents [B, 4, t, H/8, W/8] and back."""

    scale: Tensor
    shift: Tensor

    def __init__(self, config: OpenSoraVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.frames_at_once = config.micro_batch
        self.register_buffer("scale", torch.tensor(SCALE).view(1, -1, 1, 1, 1))
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, -1, 1, 1, 1))
        self.spatial_vae = SpatialVAE(config.spatial)
        self.temporal_vae = TemporalVAE(config.temporal)

    def chunks(self, num_frames: int) -> list[int]:
        """Returns the pixel frames of each chunk of a clip; only the last may be shorter."""
        size = self.config.chunk_frames or num_frames
        return [min(size, num_frames - start) for start in range(0, num_frames, size)]

    def latent_frames(self, num_frames: int) -> int:
        """Returns how many latent frames a clip of this many pixel frames has."""
        return sum(self.temporal_vae.latent_frames(chunk) for chunk in self.chunks(num_frames))

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        """Returns (C, T, H, W) of a clip's latents; pixels beyond a multiple of 8 are not rendered."""
        stride = self.config.spatial.stride
        return (
            self.config.temporal.latent_channels,
            self.latent_frames(num_frames),
            height // stride,
            width // stride,
        )

    def decode(self, z_BCTHW: Tensor, num_frames: int) -> Tensor:
        """Returns pixels [B, 3, num_frames, 8H, 8W], about -1..1."""
        frames_NCHW = _frames(self.image_latents(z_BCTHW, num_frames, Axis()))
        pixels = torch.cat([self._pixels(batch) for batch in frames_NCHW.split(self.frames_at_once)])
        return pixels.unflatten(0, (-1, num_frames)).transpose(1, 2)

    def decode_frames(self, z_BCTHW: Tensor, num_frames: int, axis: Axis) -> DecodedFrames | None:
        """Returns frames [B, num_frames, 8H, 8W, 3] on the axis' rank 0, None on the others. Collective.

        On the device, and without waiting for it: bytes are small beside what decoding a micro batch takes.
        """
        early = self._early(z_BCTHW, num_frames, axis)
        done: dict[int, Tensor] = {}

        def decode_early(chunks: Sequence[Tensor]) -> None:
            if mine := early[axis.rank]:
                batches = _frames(torch.cat(list(chunks), dim=2)).split(self.frames_at_once)
                done.update({index: pack(self._pixels(batches[index])) for index in mine})

        frames_NCHW = _frames(self.image_latents(z_BCTHW, num_frames, axis, idle=decode_early))
        batches = frames_NCHW.split(self.frames_at_once)
        stride = self.config.spatial.stride
        height, width = frames_NCHW.shape[2] * stride, frames_NCHW.shape[3] * stride
        like = torch.empty(0, dtype=torch.uint8, device=z_BCTHW.device)
        places = _places(len(batches), early)
        shapes = [packed_shape(0 if place is None else len(batches[place]), height, width) for place in places]

        def decode_batch(index: int) -> Tensor:
            place = places[index]
            if place is None:
                return like.new_empty(tuple(shapes[index]))
            return done[place] if place in done else pack(self._pixels(batches[place]))

        pieces = round_robin_to_root(decode_batch, shapes, like=like, axis=axis, to_cpu=False)
        if pieces is None:
            return None
        by_place = {place: piece for place, piece in zip(places, pieces, strict=True) if place is not None}
        frames, counts = unpack(torch.cat([by_place[place] for place in range(len(batches))]), height, width)
        by_clip = (-1, num_frames)
        return DecodedFrames(frames=frames.unflatten(0, by_clip), not_finite=counts.unflatten(0, by_clip).sum(dim=1))

    def image_latents(
        self, z_BCTHW: Tensor, num_frames: int, axis: Axis, *, idle: Callable[[Sequence[Tensor]], None] | None = None
    ) -> Tensor:
        """Undoes normalisation and time compression: returns [B, 4, num_frames, H, W] on every rank. Collective.

        `idle`: as of `round_robin`, with chunks of frames.
        """
        z_BCTHW = z_BCTHW.to(self.scale) * self.scale + self.shift
        counts = self.chunks(num_frames)
        chunks = list(z_BCTHW.split([self.temporal_vae.latent_frames(count) for count in counts], dim=2))
        batch, channels, _, height, width = z_BCTHW.shape

        def decode_chunk(index: int) -> Tensor:
            return self.temporal_vae.decode(chunks[index], counts[index])

        shapes = [(batch, channels, count, height, width) for count in counts]
        return torch.cat(round_robin(decode_chunk, shapes, like=z_BCTHW, axis=axis, idle=idle), dim=2)

    def _early(self, z_BCTHW: Tensor, num_frames: int, axis: Axis) -> list[range]:
        """Returns for each rank the micro batches that it decodes while others decode the last chunks of time."""
        counts = self.chunks(num_frames)
        whole, busy = divmod(len(counts), axis.size)
        none = range(0)
        if whole == 0 or busy == 0 or len(z_BCTHW) > 1:
            return [none] * axis.size
        known = sum(counts[: whole * axis.size]) // self.frames_at_once
        each = max(1, EARLY_FRAMES // self.frames_at_once)
        found = [none] * busy
        for start in range(0, each * (axis.size - busy), each):
            found.append(range(min(start, known), min(start + each, known)))
        return found

    def encode(self, x_BCTHW: Tensor, noise: Noise) -> Tensor:
        """Returns normalised latents sampled from the posteriors.

        `noise(shape)` draws standard normal numbers: for each micro batch of frames in turn, then for each chunk.
        """
        batch, _, num_frames = x_BCTHW.shape[:3]
        frames_NCHW = x_BCTHW.to(self.scale.dtype).transpose(1, 2).flatten(0, 1)
        latents = [self._encode_frames(frames, noise) for frames in frames_NCHW.split(self.config.micro_batch)]
        image_latents = torch.cat(latents).unflatten(0, (batch, num_frames)).transpose(1, 2)
        chunks = image_latents.split(self.chunks(num_frames), dim=2)
        z_BCTHW = torch.cat([self._encode_chunk(chunk, noise) for chunk in chunks], dim=2)
        return (z_BCTHW - self.shift) / self.scale

    def _pixels(self, x_NCHW: Tensor) -> Tensor:
        return self.spatial_vae.module.decode(x_NCHW / SPATIAL_SCALE)

    def _encode_frames(self, x_NCHW: Tensor, noise: Noise) -> Tensor:
        posterior = self.spatial_vae.module.encode(x_NCHW)
        return posterior.sample(noise(tuple(posterior.mean.shape))) * SPATIAL_SCALE

    def _encode_chunk(self, x_BCTHW: Tensor, noise: Noise) -> Tensor:
        posterior = self.temporal_vae.encode(x_BCTHW)
        return posterior.sample(noise(tuple(posterior.mean.shape)))


def _frames(x_BCTHW: Tensor) -> Tensor:
    return x_BCTHW.transpose(1, 2).flatten(0, 1)


def _places(count: int, early: Sequence[Sequence[int]]) -> list[int | None]:
    """Returns the pieces in the order in which ranks take turns: those decoded early come last, each in its rank's turn."""
    decoded = {index for pieces in early for index in pieces}
    places: list[int | None] = [index for index in range(count) if index not in decoded]
    if decoded:
        places += [None] * (-len(places) % len(early))
    for turn in range(max(len(pieces) for pieces in early)):
        places += [pieces[turn] if turn < len(pieces) else None for pieces in early]
    return places
