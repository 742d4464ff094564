"""VAEs of the diffusers library decode in the library's tiles, spread over the ranks of a clip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pab.families.ltx.config import LTX_MODEL
from pab.families.ltx.load import ltx_codec
from pab.families.ltx.tiny import write_small_ltx
from pab.library.vae import TiledCodec, library_grid
from pab.parallel.mesh import Axis
from pab.vae.tiles import TileGrid, tiled_decode
from tests.pab.conftest import TinyWeights
from tests.pab.library_world import library_module
from tests.pab.library_worlds import WORLDS
from tests.pab.vae_tiles import SIZES, decoded, latents_of, small_codec, tiling_vae
from tests.ranks import run_on_ranks


@pytest.fixture(scope="module")
def weights(tiny_weights: TinyWeights) -> Path:
    return tiny_weights(*SIZES)


def pixels(codec: TiledCodec, name: str) -> torch.Tensor:
    num_frames, height, width = SIZES[name]
    request = WORLDS[name].clip(num_frames=num_frames, height=height, width=width)
    found = codec.pixels(latents_of(codec, name), request, Axis())
    assert found is not None
    assert found.shape == (1, 3, *SIZES[name])
    return found


@torch.inference_mode()
@pytest.mark.parametrize("name", SIZES)
def test_tiles_are_the_librarys_bit_for_bit(weights: Path, tmp_path: Path, name: str) -> None:
    if name == "ltx":
        # The decoder of 0.9.1 draws noise, in the library from one generator for all tiles in turn.
        write_small_ltx(tmp_path / "ltx", 0, replace(LTX_MODEL, num_layers=2), timestep_vae=False)
        vae = tiling_vae(tmp_path, "ltx")
        codec = ltx_codec(library_module(tmp_path / "ltx" / "vae"), torch.float32)
        codec = replace(codec, grid=library_grid(vae, codec.grid.strides))
    else:
        vae, codec = tiling_vae(weights, name), small_codec(weights, name)
    ours = pixels(codec, name)
    latents = codec.unscale(latents_of(codec, name), WORLDS[name].clip())
    theirs = vae.decode(latents).sample
    whole = vae.disable_tiling() or vae.decode(latents).sample
    if name.startswith("wan"):
        assert ours.abs().max() > 1, "which the library cuts off after tiles are faded"
        ours = ours.clamp(-1, 1)
    assert torch.equal(ours, theirs)
    assert (theirs - whole).abs().max() > 1e-4, "the clip is larger than a tile"


def test_ranks_decode_tiles_in_turn_and_the_frames_are_those_of_one_rank(weights: Path) -> None:
    alone = decoded(weights, 1)
    for name, frames in alone.items():
        assert frames.shape == (1, *SIZES[name], 3)
        assert frames.float().std() > 5
    for num_ranks, cfg in ((2, 1), (4, 2)):
        first, *others = run_on_ranks(num_ranks, decoded, weights, cfg)
        for name, frames in alone.items():
            assert torch.equal(first[name], frames), f"{name} on {num_ranks} ranks"
            assert all(len(other[name]) == 0 for other in others)


def test_published_tiles_and_how_many_a_default_clip_has(weights: Path) -> None:
    expected = {"wan": 15, "wan22_5b": 28, "cogvideox_5b": 9, "ltx": 4, "hunyuan_video": 11 * 28}
    for name, count in expected.items():
        world = WORLDS[name]
        codec, clip = world.load(weights).codec, world.family.defaults
        _, frames, height, width = codec.latent_shape(clip.num_frames, clip.height, clip.width)
        assert len(codec.grid.time_spans(frames)) * len(codec.grid.places(height, width)) == count, name
    assert codec.grid.covers(torch.zeros(1, 16, 5, 32, 32))
    assert not codec.grid.covers(torch.zeros(1, 16, 6, 32, 32))


def test_a_tile_of_time_drops_what_the_one_before_has_and_fades_into_the_rest() -> None:
    grid = TileGrid(
        size=(9, 9), step=(9, 9), fade=(0, 0), kept=(9, 9), strides=(2, 1), frames=4, frame_step=2, frame_fade=2
    )
    latents = torch.arange(7.0).view(1, 1, 7, 1, 1).expand(1, 1, 7, 2, 2)
    found = tiled_decode(
        lambda index, tile: torch.full((1, 3, 2 * tile.shape[2] - 1, 2, 2), float(index)),
        latents,
        grid=grid,
        axis=Axis(),
    )
    assert [(span.start, span.stop) for span in grid.time_spans(7)] == [(0, 4), (2, 6), (4, 7)]
    assert found[0, 0, :, 0, 0].tolist() == [0, 0, 0, 0, 0, 0, 0.5, 1, 1, 1, 1.5, 2, 2]
