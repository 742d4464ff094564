"""Decoding latents in overlapping tiles of time and space, so that memory does not grow with the clip.

Tiles of time share one latent frame, whose pixels the later tile drops. Tiles of space are faded into each other in place, so
a tile is faded into its neighbour as that one was already faded: the published numbers depend on it.
Shape letters: B clips, C channels, T frames, H, W.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pab.dealing import deal_to_root
from pab.parallel import Axis


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """Sizes of a tile, in latents and in pixels; `overlap` is the share of a tile's side that its neighbour repeats."""

    latent_size: int = 32
    sample_size: int = 256
    latent_frames: int = 17
    overlap: float = 0.25

    def __post_init__(self) -> None:
        if self.latent_frames < 2:
            raise ValueError(f"latent_frames={self.latent_frames}, a tile needs 2 or more: one is its neighbour's")
        if not 0 <= self.overlap < 1 or self.stride < 1:
            raise ValueError(f"overlap={self.overlap} of latent_size={self.latent_size}, needs 0 up to but without 1")

    @property
    def stride(self) -> int:
        """Latents from one tile's corner to the next one's."""
        return int(self.latent_size * (1 - self.overlap))

    @property
    def fade(self) -> int:
        """Pixels over which a tile is faded into its neighbour."""
        return int(self.sample_size * self.overlap)

    @property
    def kept(self) -> int:
        """Pixels kept of a tile's side; the rest is its neighbour's."""
        return self.sample_size - self.fade

    def covers(self, z_BCTHW: Tensor) -> bool:
        """Whether latents fit into one tile."""
        _, _, frames, height, width = z_BCTHW.shape
        return frames <= self.latent_frames and max(height, width) <= self.latent_size

    def time_spans(self, frames: int) -> list[slice]:
        """Returns the latent frames of each tile of time."""
        step = self.latent_frames - 1
        return [slice(start, min(start + step + 1, frames)) for start in range(0, max(frames - 1, 1), step)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One piece: its latents, and where it stands in time, rows and columns."""

    place: tuple[int, int, int]
    latents: Tensor


def tiled_decode(
    decode: Callable[[Tensor], Tensor],
    z_BCTHW: Tensor,
    *,
    tiling: Tiling | None,
    strides: tuple[int, int],
    axis: Axis,
) -> Tensor | None:
    """Returns pixels [B, 3, T, H, W] on the CPU of the axis' rank 0, None on the others. Collective.

    `strides`: frames and pixels per latent. Latents that fit into one tile are decoded whole.
    """
    tiles = [Tile(place=(0, 0, 0), latents=z_BCTHW)]
    if tiling is not None and not tiling.covers(z_BCTHW):
        tiles = _cut(z_BCTHW, tiling)
    shapes = [_pixel_shape(tile.latents, strides) for tile in tiles]
    pieces = deal_to_root(lambda index: decode(tiles[index].latents), shapes, like=z_BCTHW, axis=axis)
    if pieces is None:
        return None
    if len(tiles) == 1 or tiling is None:
        return pieces[0]
    return _join({tile.place: piece for tile, piece in zip(tiles, pieces, strict=True)}, tiling)


def _cut(z_BCTHW: Tensor, tiling: Tiling) -> list[Tile]:
    _, _, frames, height, width = z_BCTHW.shape
    size, stride = tiling.latent_size, tiling.stride
    return [
        Tile(place=(t, y // stride, x // stride), latents=z_BCTHW[:, :, span, y : y + size, x : x + size])
        for t, span in enumerate(tiling.time_spans(frames))
        for y in range(0, height, stride)
        for x in range(0, width, stride)
    ]


def _pixel_shape(z_BCTHW: Tensor, strides: tuple[int, int]) -> tuple[int, ...]:
    batch, _, frames, height, width = z_BCTHW.shape
    time, space = strides
    return batch, 3, (frames - 1) * time + 1, height * space, width * space


def _join(pieces: dict[tuple[int, int, int], Tensor], tiling: Tiling) -> Tensor:
    times, rows, columns = (max(place[i] for place in pieces) + 1 for i in range(3))
    spans = []
    for t in range(times):
        joined_rows = []
        for row in range(rows):
            for column in range(columns):
                piece = pieces[t, row, column]
                if row:
                    _fade(pieces[t, row - 1, column], piece, dim=3, extent=tiling.fade)
                if column:
                    _fade(pieces[t, row, column - 1], piece, dim=4, extent=tiling.fade)
            kept = [pieces[t, row, column][..., : tiling.kept, : tiling.kept] for column in range(columns)]
            joined_rows.append(torch.cat(kept, dim=4))
        span = torch.cat(joined_rows, dim=3)
        spans.append(span if t == 0 else span[:, :, 1:])
    return torch.cat(spans, dim=2)


def _fade(before: Tensor, piece: Tensor, *, dim: int, extent: int) -> None:
    """Fades the end of one piece into the start of the next along a dim, in place."""
    extent = min(before.shape[dim], piece.shape[dim], extent)
    weight = torch.arange(extent, dtype=torch.float64).div(max(extent, 1)).to(piece.dtype)
    weight = weight.view([-1 if d == dim else 1 for d in range(piece.dim())])
    end = before.narrow(dim, before.shape[dim] - extent, extent)
    start = piece.narrow(dim, 0, extent)
    start.copy_(end * (1 - weight) + start * weight)
