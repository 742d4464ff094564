"""Decoding latents in overlapping tiles of time and space, dealt to the ranks of a clip: memory does not grow with the clip.

Tiles of time begin with a latent frame that the tile before ends with, whose pixels the later one drops. Tiles are faded into
each other in place, so a tile is faded into its neighbour as that one was already faded: the published numbers depend on it.
Shape letters: B clips, C channels, T frames, H, W.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pab.parallel.mesh import Axis
from pab.parallel.round_robin import round_robin_to_root


@dataclass(frozen=True, slots=True, kw_only=True)
class TileGrid:
    """Where tiles lie and how they meet; pairs are of rows and columns.

    `size`: latents of a tile; `step`: latents from one's corner to the next one's; `fade`: pixels over which it is faded into
    the one before; `kept`: pixels kept of it. `frames`: latent frames of a tile of time, the first of which repeats the
    last of what the tile before keeps, None for all in one; `frame_step` as `step`, `frame_fade` in pixel frames as `fade`.
    `strides`: pixel frames and pixels per latent. `cuts_small`: whether rows and columns that fit into one tile are cut into
    steps as well where time is tiled, as some published VAEs do.
    """

    size: tuple[int, int]
    step: tuple[int, int]
    fade: tuple[int, int]
    kept: tuple[int, int]
    strides: tuple[int, int]
    frames: int | None = None
    frame_step: int = 0
    frame_fade: int = 0
    cuts_small: bool = False

    def __str__(self) -> str:
        """Says how large the tiles are, in latents."""
        height, width = self.size
        return f"tiles of {height}x{width} latents" + ("" if self.frames is None else f" and {self.frames} frames")

    def covers(self, z_BCTHW: Tensor) -> bool:
        """Whether latents fit into one tile."""
        _, _, frames, height, width = z_BCTHW.shape
        in_time = self.frames is None or frames <= self.frames
        return in_time and height <= self.size[0] and width <= self.size[1]

    def time_spans(self, frames: int) -> list[slice]:
        """Returns the latent frames of each tile of time."""
        if self.frames is None:
            return [slice(0, frames)]
        starts = range(0, max(frames - 1, 1), self.frame_step)
        return [slice(start, min(start + self.frames, frames)) for start in starts]

    def places(self, height: int, width: int) -> list[tuple[slice, slice]]:
        """Returns rows and columns of each tile of space, row by row; within one tile nothing is cut but by `cuts_small`."""
        if not self.cuts_small and height <= self.size[0] and width <= self.size[1]:
            return [(slice(0, height), slice(0, width))]
        return [
            (slice(y, y + self.size[0]), slice(x, x + self.size[1]))
            for y in range(0, height, self.step[0])
            for x in range(0, width, self.step[1])
        ]


SMALLER = 0.75
"""After tiles that do not fit come such as have at most so much of their latents."""


def fitting_grids(
    grid: TileGrid, size: Sequence[int], *, ranks: int = 1, most: float | None = None, at_once: int = 2**31
) -> list[TileGrid]:
    """Returns grids of larger tiles for latents of `size` (T, H, W), the best first, and last `grid` itself.

    `most`: latents that may be decoded at once, of `at_once` frames of a tile; None for no bound. The best of those that fit
    takes the least time on so many ranks, then has the fewest tiles; each of the others has smaller tiles than the last one.
    Tiles overlap and fade as those of `grid` do.
    """
    frames, height, width = size
    rows, columns = (-(-side // step) for side, step in zip((height, width), grid.step, strict=True))
    spans = len(grid.time_spans(frames))
    found = [
        _grid_of(grid, size, (span_count, row_count, column_count))
        for span_count in range(1, spans + 1)
        for row_count in range(1, rows + 1)
        for column_count in range(1, columns + 1)
    ]

    def latents(each: TileGrid, longest: int = 2**31) -> int:
        in_time = min(each.frames or frames, frames, longest)
        return in_time * min(each.size[0], height) * min(each.size[1], width)

    def rank_work(each: TileGrid) -> tuple[int, int]:
        count = len(each.time_spans(frames)) * len(each.places(height, width))
        return -(-count // ranks) * latents(each), count

    ladder: list[TileGrid] = []
    for each in sorted(found, key=rank_work):
        bound = most if not ladder else SMALLER * latents(ladder[-1], at_once)
        if bound is None or latents(each, at_once) <= bound:
            ladder.append(each)
    return [*ladder, grid]


def _grid_of(grid: TileGrid, size: Sequence[int], counts: tuple[int, int, int]) -> TileGrid:
    """Returns a grid of so many tiles along time, height and width, or of fewer."""
    frames, height, width = size
    step = tuple(-(-side // count) for side, count in zip((height, width), counts[1:], strict=True))
    overlap = tuple(whole - each for whole, each in zip(grid.size, grid.step, strict=True))
    space = replace(
        grid,
        size=(step[0] + overlap[0], step[1] + overlap[1]),
        step=(step[0], step[1]),
        kept=(step[0] * grid.strides[1], step[1] * grid.strides[1]),
    )
    if grid.frames is None or counts[0] == 1:
        return replace(space, frames=None)
    frame_step = -(-(frames - 1) // counts[0])
    return replace(space, frames=frame_step + grid.frames - grid.frame_step, frame_step=frame_step)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One piece: its latents, and where it stands in time, rows and columns."""

    place: tuple[int, int, int]
    latents: Tensor


def tiled_decode(
    decode: Callable[[int, Tensor], Tensor],
    z_BCTHW: Tensor,
    *,
    grid: TileGrid,
    axis: Axis,
    tiled: bool = True,
    to_cpu: bool = True,
    channels: int = 3,
) -> Tensor | None:
    """Returns pixels [B, channels, T, H, W] on the axis' rank 0, on its CPU or its device; None on the others. Collective.

    `decode(index, latents)` decodes the tile of an index, which may be the whole, to the dtype of `z_BCTHW`. Latents that fit
    into one tile are decoded whole, and with `tiled` false all are.
    """
    if not tiled or grid.covers(z_BCTHW):
        # Nothing to share: the others need not send the root empty pieces.
        whole = decode(0, z_BCTHW) if axis.rank == 0 else None
        return whole.cpu() if whole is not None and to_cpu else whole
    tiles = _cut(z_BCTHW, grid)
    shapes = [_pixel_shape(tile.latents, grid.strides, channels) for tile in tiles]
    pieces = round_robin_to_root(
        lambda index: decode(index, tiles[index].latents), shapes, like=z_BCTHW, axis=axis, to_cpu=to_cpu
    )
    if pieces is None:
        return None
    return _join({tile.place: piece for tile, piece in zip(tiles, pieces, strict=True)}, grid)


def tiled_map(apply: Callable[[Tensor], Tensor], x_BCTHW: Tensor, *, grid: TileGrid) -> Tensor:
    """Returns what `apply` makes of a whole tensor, tile by tile on this rank; one that fits into a tile is not cut."""
    if grid.covers(x_BCTHW):
        return apply(x_BCTHW)
    return _join({tile.place: apply(tile.latents) for tile in _cut(x_BCTHW, grid)}, grid)


def _cut(z_BCTHW: Tensor, grid: TileGrid) -> list[Tile]:
    _, _, frames, height, width = z_BCTHW.shape
    return [
        Tile(place=(t, y.start // grid.step[0], x.start // grid.step[1]), latents=z_BCTHW[:, :, span, y, x])
        for t, span in enumerate(grid.time_spans(frames))
        for y, x in grid.places(height, width)
    ]


def _pixel_shape(z_BCTHW: Tensor, strides: tuple[int, int], channels: int) -> tuple[int, ...]:
    batch, _, frames, height, width = z_BCTHW.shape
    time, space = strides
    return batch, channels, (frames - 1) * time + 1, height * space, width * space


def _join(pieces: dict[tuple[int, int, int], Tensor], grid: TileGrid) -> Tensor:
    times = max(place[0] for place in pieces) + 1
    spans: list[Tensor] = []
    for t in range(times):
        span = _join_space({place[1:]: piece for place, piece in pieces.items() if place[0] == t}, grid)
        if t:
            span = span[:, :, 1:]
            _fade(spans[-1], span, dim=2, extent=grid.frame_fade)
        spans.append(span)
    if times == 1:
        return spans[0]
    kept = grid.frame_step * grid.strides[0]
    return torch.cat([span[:, :, : kept + (t == 0)] for t, span in enumerate(spans)], dim=2)


def _join_space(pieces: dict[tuple[int, int], Tensor], grid: TileGrid) -> Tensor:
    if len(pieces) == 1 and not grid.cuts_small:
        return pieces[0, 0]
    rows, columns = (max(place[i] for place in pieces) + 1 for i in range(2))
    joined_rows = []
    for row in range(rows):
        for column in range(columns):
            piece = pieces[row, column]
            if row:
                _fade(pieces[row - 1, column], piece, dim=3, extent=grid.fade[0])
            if column:
                _fade(pieces[row, column - 1], piece, dim=4, extent=grid.fade[1])
        kept = [pieces[row, column][..., : grid.kept[0], : grid.kept[1]] for column in range(columns)]
        joined_rows.append(torch.cat(kept, dim=4))
    return torch.cat(joined_rows, dim=3)


def _fade(before: Tensor, piece: Tensor, *, dim: int, extent: int) -> None:
    """Fades the end of one piece into the start of the next along a dim, in place."""
    extent = min(before.shape[dim], piece.shape[dim], extent)
    # In the order in which the reference rounds: both weights, then both products, then their sum.
    coming = torch.arange(extent, dtype=torch.float64, device=piece.device).div(max(extent, 1))
    coming = coming.view([-1 if d == dim else 1 for d in range(piece.dim())])
    going = (1 - coming).float()
    end = (before.narrow(dim, before.shape[dim] - extent, extent) * going).to(piece.dtype)
    start = piece.narrow(dim, 0, extent)
    start.copy_(end + (start * coming.float()).to(piece.dtype))
