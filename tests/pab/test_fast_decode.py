"""Decoders of the diffusers library in 16 bits, whole, in slices with no seams, or in few tiles, on any number of ranks."""

from __future__ import annotations

import copy
import itertools
import logging
from dataclasses import replace

import pytest
import torch

from pab.execution.choice import Execution
from pab.execution.compiled import compile_blocks, graphs_compiled, many_graphs, run_as
from pab.families.open_sora.family import OPEN_SORA
from pab.families.open_sora.fast_vae import use_fast
from pab.families.open_sora.temporal_vae import TemporalVAEConfig
from pab.families.open_sora.vae import OpenSoraVAE, OpenSoraVAEConfig
from pab.family import LoadRequest
from pab.library.slices import DOUBLE, cut, decode_span, halo_of
from pab.parallel.mesh import Axis, NodeGroup
from pab.vae.image_vae import ImageVAEConfig
from pab.vae.tiles import TileGrid, fitting_grids, tiled_decode
from tests.pab.conftest import TinyWeights
from tests.pab.fast_decoders import CLIP, DECODERS, SLICED, cut_decoder, latents_of, pixels, ranks_pixels, small_decoder
from tests.pab.worlds import clip
from tests.ranks import run_on_ranks

STEPS = 255 / 2
"""Steps of a byte in a decoder's range of -1 to 1."""
A_FEW_ULP = 5e-6


@pytest.mark.parametrize("name", DECODERS)
def test_fast_pixels_differ_by_less_than_one_of_255_from_those_of_float32(name: str) -> None:
    exact, fast = pixels(name, small_decoder(name)), small_decoder(name)
    fast.use_fast()
    found = pixels(name, fast)
    assert exact is not None
    assert found is not None
    assert found.shape == exact.shape
    assert exact.std() > 0.02
    off = (found.float().clamp(-1, 1) - exact.clamp(-1, 1)).abs().mean() * STEPS
    assert 0 < off < 1


@torch.inference_mode()
@pytest.mark.parametrize(("name", "dim"), [("wan", 4), ("wan22_5b", 3), ("hunyuan_video_15", 4)])
def test_slices_with_their_halo_are_the_whole(name: str, dim: int) -> None:
    whole, codec = pixels(name, small_decoder(name)), cut_decoder(name)
    assert whole is not None
    assert codec.fast is not None
    slices = codec.fast.slices
    assert slices is not None
    scaled = codec.unscale(latents_of(name, codec), CLIP)
    length, size = scaled.shape[dim] * slices.scale, codec.grid.strides[1] // slices.scale
    halves = [
        decode_span(slices, scaled, span=span, dim=dim, parts=parts, pixels=size)
        for span, parts in zip(cut(length, 2), (1, 2), strict=True)
    ]
    found = torch.cat(halves, dim=dim)
    plain = decode_span(slices, scaled, span=slice(0, length), dim=dim, parts=1, pixels=size)
    assert (found - plain).abs().max() <= A_FEW_ULP
    if codec.patch == 1:
        assert (plain - whole).abs().max() <= A_FEW_ULP, "the library's own numbers"
    narrow = replace(slices, halo=slices.halo - 1)
    less = decode_span(narrow, scaled, span=cut(length, 2)[0], dim=dim, parts=1, pixels=size)
    assert (less - halves[0]).abs().max() > A_FEW_ULP, "the halo is no wider than it must be"


def test_ranks_share_slices_and_tiles_of_a_clip() -> None:
    names = (*SLICED, "hunyuan_video")
    alone = [pixels(name, small_decoder(name)) for name in names]
    for count in (2, 4):
        first, *others = run_on_ranks(count, ranks_pixels, names)
        assert all(found is None for other in others for found in other)
        for name, found, whole in zip(names, first, alone, strict=True):
            assert found.shape == whole.shape
            if name in SLICED:
                assert (found - whole).abs().max() <= A_FEW_ULP, f"{name} on {count} ranks"


def test_a_halo_counts_convolutions_back_from_the_pixels() -> None:
    assert halo_of([1]) == 1
    assert halo_of([6, DOUBLE, 1, 6, 1]) == 10
    assert halo_of([6, 1, DOUBLE, 6, 1]) == 11
    assert cut(7, 3) == [slice(0, 2), slice(2, 4), slice(4, 7)]
    assert cut(2, 4) == [slice(0, 1), slice(1, 2)]


def test_slices_are_as_many_as_the_memory_left_asks_for_and_more_where_it_was_not_enough(
    caplog: pytest.LogCaptureFixture,
) -> None:
    codec = cut_decoder("wan")
    assert codec.fast is not None
    assert codec.fast.slices is not None
    latents = torch.randn(1, 16, 2, 4, 24)
    whole = codec.pixels(latents, CLIP, Axis())
    tails = codec.fast.slices.open_tail
    asked: list[int] = []

    def open_tail():
        tail = tails()

        def counted(features):
            asked.append(features.shape[4])
            if features.shape[4] > 40:
                raise torch.OutOfMemoryError("no memory")
            return tail(features)

        return counted

    small = replace(codec, fast=replace(codec.fast, slices=replace(codec.fast.slices, open_tail=open_tail)))
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        found = small.pixels(latents, CLIP, Axis())
    assert torch.allclose(found, whole, atol=A_FEW_ULP)
    assert asked[0] == 96
    assert max(asked[3:]) <= 24 + 2 * codec.fast.slices.halo
    assert "is decoded in 2 slices: in one piece it does not fit" in caplog.text
    assert "is decoded in 4 slices: in 2 slices it does not fit" in caplog.text
    asked.clear()
    small.way.free = lambda _device: codec.fast.latent_bytes * 4 * 10 / 0.8
    with torch.inference_mode():
        assert torch.allclose(small.pixels(latents, CLIP, Axis()), whole, atol=A_FEW_ULP)
    assert max(asked) <= 40, "what is left was looked at before"


GRID = TileGrid(size=(32, 32), step=(24, 24), fade=(64, 64), kept=(192, 192), strides=(4, 8), frames=5, frame_step=3)


@pytest.mark.parametrize(
    ("ranks", "most", "spans", "tiles"),
    [(1, None, 1, 1), (1, 120_000, 3, 1), (1, 41_000, 2, 5), (1, 6_000, 8, 15), (1, 100, 11, 15), (4, None, 4, 1)],
)
def test_a_clip_is_cut_into_the_fewest_tiles_that_fit(ranks: int, most: float | None, spans: int, tiles: int) -> None:
    grids = fitting_grids(GRID, (33, 68, 120), ranks=ranks, most=most)
    first = grids[0]
    assert (len(first.time_spans(33)), len(first.places(68, 120))) == (spans, tiles)
    assert grids[-1] == GRID
    sizes = [(grid.frames or 33) * min(grid.size[0], 68) * min(grid.size[1], 120) for grid in grids]
    assert all(later <= 0.75 * earlier for earlier, later in itertools.pairwise(sizes[:-1]))


def test_larger_tiles_overlap_as_the_published_ones_and_cover_the_clip() -> None:
    small = replace(GRID, size=(4, 4), step=(3, 3), fade=(2, 2), kept=(6, 6), strides=(4, 2), frame_fade=4)
    for grid in fitting_grids(small, (12, 7, 10)):
        found = tiled_decode(
            lambda _index, tile: torch.ones(1, 1, (tile.shape[2] - 1) * 4 + 1, tile.shape[3] * 2, tile.shape[4] * 2),
            torch.zeros(1, 1, 12, 7, 10), grid=grid, axis=Axis(), channels=1,
        )  # fmt: skip
        assert found is not None
        assert found.shape == (1, 1, 45, 14, 20)
        assert torch.allclose(found, torch.ones(()))


def test_tiles_grow_smaller_until_they_fit(caplog: pytest.LogCaptureFixture) -> None:
    codec = replace(small_decoder("cogvideox"), grid=replace(small_decoder("cogvideox").grid, size=(4, 4), step=(3, 3),
                                                             fade=(8, 8), kept=(24, 24)))  # fmt: skip
    latents = torch.randn(1, codec.channels, 1, 9, 9)
    in_tiles = codec.pixels(latents, CLIP, Axis())
    asked: list[int] = []

    def decode(index: int, tile: torch.Tensor, request: object) -> torch.Tensor:
        asked.append(tile.shape[3] * tile.shape[4])
        if asked[-1] > 16:
            raise torch.OutOfMemoryError("no memory")
        return codec.decode(index, tile, CLIP)

    small = replace(codec, decode=decode, way=replace(codec.way, fast=True))
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        found = small.pixels(latents, CLIP, Axis())
    tried = [size for size in asked if size > 16]
    assert tried[0] == 81
    assert tried == sorted(set(tried), reverse=True)
    assert torch.equal(found, in_tiles)
    assert "is decoded in smaller tiles: in tiles of" in caplog.text
    assert small.way.pieces == "tiles of 4x4 latents"
    room = replace(codec, way=replace(codec.way, fast=True))
    with torch.inference_mode():
        room.pixels(latents, CLIP, Axis())
    assert (room.way.pieces, codec.way.pieces) == ("one piece", None)
    assert codec.fast is not None
    bounded = replace(small, fast=replace(codec.fast, most_latents=36))
    asked.clear()
    with torch.inference_mode():
        bounded.pixels(latents, CLIP, Axis())
    assert asked[0] <= 36, "whatever the memory"


@torch.inference_mode()
@pytest.mark.parametrize("name", ["cogvideox", "hunyuan_video"])
def test_a_compiled_decoder_makes_the_same_and_is_compiled_once(name: str) -> None:
    torch._dynamo.reset()
    fast, compiled = small_decoder(name), small_decoder(name)
    for each in (fast, compiled):
        each.use_fast()
    parts = compiled.compiled_parts()
    assert parts
    compile_blocks([torch.nn.ModuleList(parts)], backend="eager")
    with many_graphs():
        first = pixels(name, compiled)
        graphs = graphs_compiled()
        again = pixels(name, compiled)
    assert graphs_compiled() == graphs
    assert torch.equal(first, pixels(name, fast))
    assert torch.equal(again, first)


@torch.inference_mode()
@pytest.mark.parametrize("num_frames", [1, 17, 24])
def test_open_soras_decoder_laid_out_for_speed_makes_the_published_pixels(num_frames: int) -> None:
    plain, fast = two_open_sora_vaes()
    latents = torch.randn(2, *plain.latent_shape(num_frames, 16, 24), generator=torch.Generator().manual_seed(0))
    exact, found = (vae.decode(latents, num_frames) for vae in (plain, fast))
    assert exact.std() > 0.1
    assert (found - exact).abs().max() < 2e-5
    frames, published = (vae.decode_frames(latents, num_frames, Axis()) for vae in (fast, plain))
    assert (frames.frames.int() - published.frames.int()).abs().max() <= 1


def two_open_sora_vaes() -> tuple[OpenSoraVAE, OpenSoraVAE]:
    """Returns a VAE with levels of several widths and biases that count, and the same one made fast."""
    torch.manual_seed(3)
    spatial = ImageVAEConfig(block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4)
    temporal = TemporalVAEConfig(filters=8, num_res_blocks=1, num_groups=4)
    vae = OpenSoraVAE(OpenSoraVAEConfig(spatial=spatial, temporal=temporal)).eval()
    for parameter in vae.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.3)
    fast = copy.deepcopy(vae)
    use_fast(fast)
    return vae, fast


@torch.inference_mode()
def test_open_sora_decodes_fast_as_its_model_is_told_to_and_compiles_nothing_for_it(tiny_weights: TinyWeights) -> None:
    weights = str(tiny_weights("open_sora") / "open_sora")
    model = OPEN_SORA.load(LoadRequest(weights=weights, precision="float32", device="cpu"))
    request = clip(num_frames=17, height=16, width=24)
    latents = torch.randn(1, *model.latent_shape(request))
    plain = model.decode(latents, request, NodeGroup()).frames
    run_as(model, Execution(compiled=True, decode="fast"), backend="eager")
    before = graphs_compiled()
    found = model.decode(latents, request, NodeGroup()).frames
    assert graphs_compiled() == before
    assert (found.int() - plain.int()).abs().max() <= 1
    model.use_fast_decode()  # a second time changes nothing
    assert torch.equal(model.decode(latents, request, NodeGroup()).frames, found)
