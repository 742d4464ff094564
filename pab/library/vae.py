"""A causal VAE of the diffusers library, decoding in the tiles of its `enable_tiling()`, dealt to the ranks of a clip.

Fast (`FastDecoder`), it decodes whole clips where they fit into the memory that is left, else slices with no seams, or the
fewest tiles that fit. Ranks of a clip share slices or tiles.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pab.family import ClipRequest
from pab.library.fast_decode import FastDecoder, decoder_dtype
from pab.library.slices import SlicedDecoder, cut, decode_span
from pab.model import DecodedFrames
from pab.nn.video import frames_of_no_clip
from pab.parallel.mesh import Axis, NodeGroup
from pab.parallel.round_robin import round_robin_to_root
from pab.vae.pixels import clip_bytes
from pab.vae.tiles import TileGrid, fitting_grids, tiled_decode

LOG = logging.getLogger(__name__)


LONGEST = 2**31
"""More frames than any clip has."""
SAFE_SHARE = 0.8
"""Of the memory that is left; the rest is for what convolutions take while they run, and for gaps."""


def free_bytes(device: torch.device) -> float | None:
    """Returns the bytes that a GPU has left, with what torch holds unused; None on a CPU, where nothing is bounded."""
    if device.type != "cuda":
        return None
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


@dataclass(slots=True)
class DecodeWay:
    """How a loaded codec decodes from now on.

    `left`: by the shape of latents, what was left when the first clip of that shape was decoded, on the rank with the least:
    what is decided by it is the same on all ranks and for all such clips. `pieces`: the tiles of the last clip that was
    decoded in as few as fit.
    """

    fast: bool = False
    free: Callable[[torch.device], float | None] = free_bytes
    left: dict[tuple[int, ...], float] = field(default_factory=dict)
    pieces: str | None = None


def library_grid(vae: Any, strides: tuple[int, int], patch: int = 1) -> TileGrid:
    """Returns where the library lays the tiles of a VAE. `strides`: pixel frames and pixels, or patches, per latent."""
    time, space = strides
    pixels = vae.tile_sample_min_height // patch, vae.tile_sample_min_width // patch
    if hasattr(vae, "tile_overlap_factor_height") or hasattr(vae, "tile_overlap_factor"):
        sides = ("tile_overlap_factor_height", "tile_overlap_factor_width")
        overlaps = _pair(getattr(vae, side, None) or vae.tile_overlap_factor for side in sides)
        size = vae.tile_latent_min_height, vae.tile_latent_min_width
        step = _pair(int(latents * (1 - overlap)) for latents, overlap in zip(size, overlaps, strict=True))
        fade = _pair(int(side * overlap) for side, overlap in zip(pixels, overlaps, strict=True))
        return TileGrid(size=size, step=step, fade=fade, kept=_less(pixels, fade), strides=strides)
    kept = vae.tile_sample_stride_height // patch, vae.tile_sample_stride_width // patch
    grid = TileGrid(
        size=_pair(side // space for side in pixels),
        step=_pair(side // space for side in kept),
        fade=_less(pixels, kept),
        kept=kept,
        strides=strides,
    )
    if not getattr(vae, "use_framewise_decoding", False):
        return grid
    frames, kept_frames = vae.tile_sample_min_num_frames, vae.tile_sample_stride_num_frames
    return replace(
        grid, frames=frames // time + 1, frame_step=kept_frames // time, frame_fade=frames - kept_frames
    )  # fmt: skip


def _pair(values: Any) -> tuple[Any, Any]:
    first, second = values
    return first, second


def _less(pair: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return pair[0] - other[0], pair[1] - other[1]


class FastCodec(Protocol):
    """A codec that can decode faster."""

    def use_fast(self) -> None:
        """Has clips decoded faster from now on."""

    def compiled_parts(self) -> Sequence[nn.Module]:
        """Returns what of the fast decoder compiles. Call it after `use_fast`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TiledCodec:
    """Decodes clips with a causal VAE whose first latent frame is one frame, on all ranks of a clip.

    `unscale(latents, request)` turns a clip's latents [B, C, T, H, W] into what the decoder takes; `decode(index, latents,
    request)` decodes the tile of an index to pixels [B, 3, T', H', W'] of -1..1, or, where `patch` is more than 1, to squares
    of so many pixels a side [B, 3 patch^2, T', H', W'], put in place when tiles are joined. Clips within one tile are
    decoded whole. Which rank decodes a tile changes no number. `fast`: how the VAE decodes faster; None for one that cannot.
    """

    unscale: Callable[[Tensor, ClipRequest], Tensor]
    decode: Callable[[int, Tensor, ClipRequest], Tensor]
    channels: int
    grid: TileGrid
    patch: int = 1
    fast: FastDecoder | None = None
    way: DecodeWay = field(default_factory=DecodeWay)

    def use_fast(self) -> None:
        """Has clips decoded in 16 bits and in as few pieces as fit from now on."""
        assert self.fast is not None, "its family says that it can"
        self.fast.prepare()
        self.way.fast = True

    def compiled_parts(self) -> Sequence[nn.Module]:
        """Returns what of the fast decoder compiles. Call it after `use_fast`."""
        return () if self.fast is None else self.fast.compiled()

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        """Returns (C, T, H, W)."""
        time, space = self.grid.strides
        return (
            self.channels,
            (num_frames - 1) // time + 1,
            height // (space * self.patch),
            width // (space * self.patch),
        )

    @torch.inference_mode()
    def decode_frames(self, latents: Tensor, request: ClipRequest, group: NodeGroup) -> DecodedFrames:
        """Returns frames on the device; of no clip on ranks other than the clip's root. Collective."""
        pixels_BCTHW = self.pixels(latents, request, group.clip)
        if pixels_BCTHW is None:
            return frames_of_no_clip(request)
        frames, not_finite = clip_bytes(pixels_BCTHW)
        return DecodedFrames(frames=frames, not_finite=not_finite, pieces=self.way.pieces)

    def pixels(self, latents: Tensor, request: ClipRequest, axis: Axis) -> Tensor | None:
        """Returns pixels [B, 3, T, H, W], about -1..1, on the axis' rank 0, None on the others. Collective."""
        if not self.way.fast:
            found = self._tiled(self.unscale(latents, request), request, axis, self.grid)
        elif self.fast is not None and self.fast.slices is not None:
            found = self._sliced(latents, request, axis, self.fast.slices)
        else:
            found = self._in_fewest_tiles(latents, request, axis)
        return found if found is None or self.patch == 1 else _unpatched(found, self.patch)

    def _tiled(self, scaled: Tensor, request: ClipRequest, axis: Axis, grid: TileGrid) -> Tensor | None:
        return tiled_decode(
            lambda index, tile: self.decode(index, tile, request).to(scaled.dtype),
            scaled,
            grid=grid,
            axis=axis,
            to_cpu=False,
            channels=3 * self.patch**2,
        )

    def _in_fewest_tiles(self, latents: Tensor, request: ClipRequest, axis: Axis) -> Tensor | None:
        """Decodes in the tiles that come first of those that fit; where one does not, on one rank, in smaller ones."""
        scaled = self.unscale(latents, request)
        _, _, *size = scaled.shape
        grids = fitting_grids(
            self.grid, size, ranks=axis.size, most=self._most_latents(scaled, axis), at_once=self._at_once
        )
        for grid in grids:
            self.way.pieces = "one piece" if grid.covers(scaled) else str(grid)
            if axis.size > 1 and grid.covers(scaled):
                if axis.rank > 0:
                    return None
                axis = Axis()  # nobody else takes part in it
            try:
                return self._tiled(scaled, request, axis, grid)
            except torch.OutOfMemoryError:
                if axis.size > 1 or grid is grids[-1]:
                    raise
            # Outside of `except`, whose traceback holds tensors.
            _tell_smaller(request, "smaller tiles", str(grid))
        raise AssertionError("the published tiles are the last")

    def _sliced(self, latents: Tensor, request: ClipRequest, axis: Axis, slices: SlicedDecoder) -> Tensor | None:
        """Decodes a span of the longer side on each rank. The numbers are those of one rank, and of one piece."""
        scaled = self.unscale(latents, request)
        dim = 3 if scaled.shape[3] > scaled.shape[4] else 4
        spans = cut(scaled.shape[dim] * slices.scale, min(axis.size, scaled.shape[dim]))
        time, space = self.grid.strides
        pixels = space // slices.scale
        batch, _, frames, *sides = scaled.shape
        shapes = []
        for span in spans:
            shape = [batch, 3 * self.patch**2, (frames - 1) * time + 1, *(side * space for side in sides)]
            shape[dim] = (span.stop - span.start) * pixels
            shapes.append(shape)
        most = self._most_latents(scaled, axis)

        def decode(index: int) -> Tensor:
            ladder = self._parts(scaled, spans[index], dim, slices, most)
            for parts in ladder:
                try:
                    return decode_span(slices, scaled, span=spans[index], dim=dim, parts=parts, pixels=pixels)
                except torch.OutOfMemoryError:
                    if parts == ladder[-1]:
                        raise
                _tell_smaller(request, f"{2 * parts} slices", "one piece" if parts == 1 else f"{parts} slices")
            raise AssertionError("a ladder has a last step")

        pieces = round_robin_to_root(decode, shapes, like=scaled, axis=axis, to_cpu=False)
        return None if pieces is None else torch.cat(pieces, dim=dim) if len(pieces) > 1 else pieces[0]

    def _parts(self, scaled: Tensor, span: slice, dim: int, slices: SlicedDecoder, most: float | None) -> list[int]:
        """Returns in how many parts a span is decoded, and what is tried after it: none is narrower than its halo."""
        length = span.stop - span.start
        counts = [2**power for power in range(10) if power == 0 or length >> power >= max(slices.halo, 1)]
        if most is None:
            return counts
        whole = scaled.shape[dim] * slices.scale
        across = math.prod(scaled.shape[3:]) / scaled.shape[dim] * min(self._at_once, scaled.shape[2])
        fits = [
            count for count in counts if across * min(length / count + 2 * slices.halo, whole) / slices.scale <= most
        ]
        return counts[counts.index(fits[0]) :] if fits else counts[-1:]

    @property
    def _at_once(self) -> int:
        frames = None if self.fast is None else self.fast.frames_at_once
        return LONGEST if frames is None else frames

    def _most_latents(self, scaled: Tensor, axis: Axis) -> float | None:
        """Returns how many latents may be decoded at once, on all ranks the same; None for no bound. Collective."""
        shape = tuple(scaled.shape)
        if shape not in self.way.left:
            free = self.way.free(scaled.device)
            if free is None or self.fast is None:
                return None if self.fast is None else self.fast.most_latents
            # Read once for a size, because it waits for the device where ranks share a clip.
            shared = axis.all_gather(torch.tensor([free], dtype=torch.float64, device=scaled.device))
            self.way.left[shape] = min(float(part) for part in shared) if axis.size > 1 else free
        assert self.fast is not None, "what is left was asked for by its figures"
        fits = SAFE_SHARE * self.way.left[shape] / self.fast.latent_bytes
        return fits if self.fast.most_latents is None else min(fits, self.fast.most_latents)


def _tell_smaller(request: ClipRequest, word: str, failed: str) -> None:
    LOG.warning(
        "a clip of %d frames %dx%d is decoded in %s: in %s it does not fit into the memory left",
        request.num_frames,
        request.height,
        request.width,
        word,
        failed,
    )


def _unpatched(patches_BCTHW: Tensor, patch: int) -> Tensor:
    """Puts squares of pixels in place: channels are colour, column and row within the square."""
    whole = patches_BCTHW.unflatten(1, (-1, patch, patch)).permute(0, 1, 4, 5, 3, 6, 2)
    return whole.flatten(5, 6).flatten(3, 4)


def open_codec(
    vae: Any,
    *,
    strides: tuple[int, int],
    channels: int,
    patch: int = 1,
    unscale: Callable[[Tensor, ClipRequest], Tensor],
    decode: Callable[[int, Tensor, ClipRequest], Tensor] | None = None,
    fast: FastDecoder | None = None,
) -> TiledCodec:
    """Returns the codec of a loaded VAE. `decode`: how it decodes one tile, unless it is given nothing but latents."""
    grid = library_grid(vae, strides, patch)
    # Tiles are cut here; the library is to decode each whole.
    vae.use_tiling = vae.use_framewise_decoding = False

    def decode_whole(_index: int, tile: Tensor, _request: ClipRequest) -> Tensor:
        pixels: Tensor = vae.decode(tile.to(decoder_dtype(vae)), return_dict=False)[0]
        return pixels

    return TiledCodec(
        unscale=unscale,
        decode=decode or decode_whole,
        channels=channels,
        grid=grid,
        patch=patch,
        fast=fast,
    )
