"""A causal VAE of the diffusers library, decoding in the tiles of its `enable_tiling()`, dealt to the ranks of a clip."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pab.family import ClipRequest
from pab.model import DecodedFrames
from pab.nn.video import frames_of_no_clip
from pab.parallel.mesh import Axis, NodeGroup
from pab.vae.pixels import clip_bytes
from pab.vae.tiles import TileGrid, tiled_decode

LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class DecodeWay:
    """How a loaded codec decodes from now on. `whole`: clips in one piece, if that fits into the device's memory."""

    whole: bool = False


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


@dataclass(frozen=True, slots=True, kw_only=True)
class TiledCodec:
    """Decodes clips with a causal VAE whose first latent frame is one frame, on all ranks of a clip.

    `unscale(latents, request)` turns a clip's latents [B, C, T, H, W] into what the decoder takes; `decode(index, latents,
    request)` decodes the tile of an index to pixels [B, 3, T', H', W'] of -1..1, or, where `patch` is more than 1, to squares
    of so many pixels a side [B, 3 patch^2, T', H', W'], put in place when tiles are joined. Clips within one tile are
    decoded whole. Which rank decodes a tile changes no number. `speed_up()` has the VAE compute faster, and round
    differently; None for one that cannot.
    """

    unscale: Callable[[Tensor, ClipRequest], Tensor]
    decode: Callable[[int, Tensor, ClipRequest], Tensor]
    channels: int
    grid: TileGrid
    patch: int = 1
    speed_up: Callable[[], None] | None = None
    way: DecodeWay = field(default_factory=DecodeWay)

    def use_fast(self) -> None:
        """Has clips decoded in bfloat16 and in one piece from now on."""
        assert self.speed_up is not None, "its family says that it can"
        self.speed_up()
        self.way.whole = True

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
        return DecodedFrames(frames=frames, not_finite=not_finite)

    def pixels(self, latents: Tensor, request: ClipRequest, axis: Axis) -> Tensor | None:
        """Returns pixels [B, 3, T, H, W], about -1..1, on the axis' rank 0, None on the others. Collective."""
        if self.way.whole:
            pixels_BCTHW = self._whole(latents, request) if axis.rank == 0 else None
        else:
            pixels_BCTHW = self._tiled(latents, request, axis)
        return pixels_BCTHW if pixels_BCTHW is None or self.patch == 1 else _unpatched(pixels_BCTHW, self.patch)

    def _tiled(self, latents: Tensor, request: ClipRequest, axis: Axis) -> Tensor | None:
        return tiled_decode(
            lambda index, tile: self.decode(index, tile, request),
            self.unscale(latents, request),
            grid=self.grid,
            axis=axis,
            to_cpu=False,
            channels=3 * self.patch**2,
        )

    def _whole(self, latents: Tensor, request: ClipRequest) -> Tensor | None:
        try:
            return self.decode(0, self.unscale(latents, request), request)
        except torch.OutOfMemoryError:
            LOG.warning(
                "a clip of %d frames %dx%d is decoded in tiles: in one piece it does not fit into the memory left",
                request.num_frames,
                request.height,
                request.width,
            )
        # Outside of `except`, whose traceback holds tensors. Nobody else takes part in it.
        return self._tiled(latents, request, Axis())


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
    speed_up: Callable[[], None] | None = None,
) -> TiledCodec:
    """Returns the codec of a loaded VAE. `decode`: how it decodes one tile, unless it is given nothing but latents."""
    grid = library_grid(vae, strides, patch)
    # Tiles are cut here; the library is to decode each whole.
    vae.use_tiling = vae.use_framewise_decoding = False

    def decode_whole(_index: int, tile: Tensor, _request: ClipRequest) -> Tensor:
        pixels: Tensor = vae.decode(tile, return_dict=False)[0]
        return pixels

    return TiledCodec(
        unscale=unscale,
        decode=decode or decode_whole,
        channels=channels,
        grid=grid,
        patch=patch,
        speed_up=speed_up,
    )
