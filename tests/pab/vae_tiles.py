"""Small VAEs of the diffusers library that decode clips of several tiles, on any number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pab.library.vae import TiledCodec, library_grid
from pab.parallel.mesh import NodeGroup, open_group
from tests.pab.library_world import library_module
from tests.pab.library_worlds import WORLDS

TILES: Mapping[str, Mapping[str, float]] = {
    "wan": {
        "tile_sample_min_height": 64, "tile_sample_min_width": 48,
        "tile_sample_stride_height": 48, "tile_sample_stride_width": 32,
    },
    "wan22_5b": {
        "tile_sample_min_height": 128, "tile_sample_min_width": 96,
        "tile_sample_stride_height": 96, "tile_sample_stride_width": 64,
    },
    "cogvideox_5b": {
        "tile_sample_min_height": 48, "tile_sample_min_width": 64,
        "tile_overlap_factor_height": 1 / 3, "tile_overlap_factor_width": 1 / 4,
    },
    "ltx": {
        "tile_sample_min_height": 128, "tile_sample_min_width": 96,
        "tile_sample_stride_height": 96, "tile_sample_stride_width": 64,
    },
    "hunyuan_video": {
        "tile_sample_min_height": 32, "tile_sample_min_width": 48, "tile_sample_min_num_frames": 8,
        "tile_sample_stride_height": 16, "tile_sample_stride_width": 32, "tile_sample_stride_num_frames": 4,
    },
}  # fmt: skip
"""Tiles far smaller than the published ones: what is asked of the library's `enable_tiling`."""
SIZES = {
    "wan": (9, 96, 80),
    "wan22_5b": (5, 192, 160),
    "cogvideox_5b": (9, 80, 112),
    "ltx": (9, 192, 160),
    "hunyuan_video": (17, 48, 80),
}
"""Frames, height and width of a clip of several tiles, the last ones cut short."""


def tiling_vae(folder: Path, name: str) -> Any:
    """The library's own VAE, tiling."""
    vae = library_module(folder / name / "vae")
    vae.enable_tiling(**TILES[name])
    return vae


def small_codec(folder: Path, name: str) -> TiledCodec:
    """Our codec of the same VAE, with as small tiles."""
    codec = WORLDS[name].load(folder).codec
    assert isinstance(codec, TiledCodec)
    return replace(codec, grid=library_grid(tiling_vae(folder, name), codec.grid.strides, codec.patch))


def latents_of(codec: TiledCodec, name: str) -> Tensor:
    shape = codec.latent_shape(*SIZES[name])
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(4))


def decoded(folder: Path, cfg: int) -> dict[str, Tensor]:
    """Frames of every family's clip on the ranks that there are; of no clip on ranks other than the first."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    group = open_group(dp=1, cfg=cfg, sp=world // cfg, device=torch.device("cpu")) if world > 1 else NodeGroup()
    frames = {}
    for name, (num_frames, height, width) in SIZES.items():
        codec = small_codec(folder, name)
        request = WORLDS[name].clip(num_frames=num_frames, height=height, width=width)
        frames[name] = codec.decode_frames(latents_of(codec, name), request, group).frames
    return frames
