"""Decoding a clip in slices that together are the whole, with no overlap to blend: each has the halo that its pixels see.

The first part of a decoder (its head, with attention over the whole picture) runs whole, on few pixels. The rest (its tail)
has convolutions and norms of single pixels alone, so a part of the picture needs no more than some columns beyond it. What
convolutions see of earlier frames stays with a tail from one chunk of frames to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Tail = Callable[[Tensor], Tensor]
"""From features [B, C, t, H, W] to pixels, chunk after chunk."""
DOUBLE = "double"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlicedDecoder:
    """A decoder in two parts.

    `head(latents)` yields features [B, C, t, H, W] chunk by chunk of time, each of the whole picture. `open_tail()` begins a
    clip's, or a slice's, way from features to pixels. `scale`: features per latent along a side. `halo`: features on either
    side of a slice that its pixels depend on.
    """

    head: Callable[[Tensor], Iterator[Tensor]]
    open_tail: Callable[[], Tail]
    scale: int
    halo: int


def halo_of(steps: Sequence[int | str]) -> int:
    """Returns the halo of a tail's steps, in their order: so many convolutions over three places, or `DOUBLE` the size."""
    needed = 0
    for step in reversed(steps):
        needed = -(-needed // 2) if isinstance(step, str) else needed + step
    return needed


def cut(length: int, parts: int) -> list[slice]:
    """Returns where even parts of a length begin and end; there are no empty ones."""
    ends = [length * (at + 1) // parts for at in range(parts)]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False) if end > start]


def decode_span(
    decoder: SlicedDecoder, latents_BCTHW: Tensor, *, span: slice, dim: int, parts: int, pixels: int
) -> Tensor:
    """Returns the pixels of a span of features along `dim` (3 or 4), in so many parts one after the other.

    More parts take less memory. `pixels`: pixels of a feature along a side.
    """
    length = latents_BCTHW.shape[dim] * decoder.scale
    tails = [
        (slice(span.start + part.start, span.start + part.stop), decoder.open_tail(), list[Tensor]())
        for part in cut(span.stop - span.start, parts)
    ]
    for features in decoder.head(latents_BCTHW):
        for part, tail, found in tails:
            first, last = max(0, part.start - decoder.halo), min(length, part.stop + decoder.halo)
            decoded = tail(features.narrow(dim, first, last - first))
            own = decoded.narrow(dim, (part.start - first) * pixels, (part.stop - part.start) * pixels)
            found.append(own.contiguous())
    return torch.cat([torch.cat(found, dim=2) for _, _, found in tails], dim=dim)
