"""Decoding is cut into chunks, micro batches and tiles, and dealt to ranks, without changing a number."""

import pytest
import torch

from pab.families.open_sora.temporal_vae import TemporalVAEConfig
from pab.families.open_sora.vae import SPATIAL_SCALE
from pab.families.open_sora_plan.causal_tiles import Tiling
from pab.families.open_sora_plan.causal_vae import CausalVAE, CausalVAEConfig
from pab.parallel.mesh import Axis
from pab.parallel.round_robin import round_robin, round_robin_to_root
from pab.vae.image_vae import ImageVAEConfig
from tests.pab.vae_ranks import TILING, causal_vae, decode_causal, decode_open_sora, open_sora_vae, whole_axis
from tests.ranks import run_on_ranks

RANKS = 3


def decode_both() -> tuple[torch.Tensor | None, ...]:
    published = decode_open_sora(24), decode_open_sora(1), decode_causal(4, 6, 5), decode_causal(2, 3, 3)
    fast = [decode_open_sora(num_frames, fast=True) for num_frames in (24, 1, 60)]
    # Of four chunks of time the last one leaves two ranks to decode frames meanwhile.
    return *published, *fast, decode_open_sora(68)


def deal_squares() -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
    axis = whole_axis()
    shapes = [(index + 1, 2) for index in range(7)]

    def square(index: int) -> torch.Tensor:
        assert index % axis.size == axis.rank, "a rank computes only its own pieces"
        return torch.full(shapes[index], float(index * index))

    like = torch.zeros(1)
    return round_robin(square, shapes, like=like, axis=axis), round_robin_to_root(square, shapes, like=like, axis=axis)


@pytest.fixture(scope="module")
def on_ranks() -> list[tuple[torch.Tensor | None, ...]]:
    return run_on_ranks(RANKS, decode_both)


def test_ranks_decode_what_one_rank_decodes(on_ranks: list[tuple[torch.Tensor | None, ...]]) -> None:
    [one_rank] = run_on_ranks(1, decode_both)  # a rank has one thread: several round another way
    for alone, shared in zip(one_rank, on_ranks[0], strict=True):
        assert alone is not None
        assert shared is not None
        torch.testing.assert_close(shared, alone, rtol=0, atol=0 if alone.dtype == torch.uint8 else 1e-6)


def test_only_the_clips_root_holds_its_pixels(on_ranks: list[tuple[torch.Tensor | None, ...]]) -> None:
    assert [value for rank in on_ranks[1:] for value in rank] == [None] * 16


def test_dealt_pieces_come_back_in_order_and_unpadded() -> None:
    alone, _ = deal_squares()
    for rank, (everywhere, on_root) in enumerate(run_on_ranks(RANKS, deal_squares)):
        assert [piece.tolist() for piece in everywhere] == [piece.tolist() for piece in alone]
        assert (on_root is None) == (rank > 0)
        assert rank > 0 or [piece.tolist() for piece in on_root] == [piece.tolist() for piece in alone]


def test_chunks_are_the_published_ones_and_do_not_see_each_other() -> None:
    vae = open_sora_vae()
    assert vae.chunks(51) == [17, 17, 17]
    assert vae.chunks(24) == [17, 7]
    assert vae.latent_shape(51, 480, 848) == (4, 15, 60, 106)
    z = torch.randn(1, 4, 7, 2, 2)
    with torch.inference_mode():
        before = vae.image_latents(z, 24, Axis())
        z[:, :, 5:] += 1
        after = vae.image_latents(z, 24, Axis())
    assert torch.equal(before[:, :, :17], after[:, :, :17])
    assert not torch.equal(before[:, :, 17:], after[:, :, 17:])


def test_frames_are_rounded_to_bytes_over_the_whole_range() -> None:
    vae = open_sora_vae()
    z = torch.randn(1, 4, 2, 2, 3)
    with torch.inference_mode():
        pixels = vae.decode(z, 5)
        frames = vae.decode_frames(z, 5, Axis()).frames
    assert frames is not None
    assert frames.shape == (1, 5, 16, 24, 3)
    expected = (pixels.clamp(-1, 1) * 127.5 + 128).to(torch.uint8).permute(0, 2, 3, 4, 1)
    assert torch.equal(frames, expected)
    assert SPATIAL_SCALE == 0.18215


def test_encode_undoes_the_normalisation_of_decode() -> None:
    """The mean of a posterior without noise, normalised, denormalises to itself."""
    vae = open_sora_vae()
    with torch.inference_mode():
        z = vae.encode(torch.randn(1, 3, 20, 16, 8), torch.zeros)
    assert z.shape == (1, 4, 6, 2, 1)
    assert vae.latent_frames(20) == 6


def test_latents_within_a_tile_are_decoded_whole() -> None:
    vae = causal_vae()
    z = torch.randn(1, 4, 3, 4, 4)
    with torch.inference_mode():
        assert torch.equal(vae.decode(z, tiling=TILING), vae.decode(z))


def test_tiles_cover_all_frames_and_pixels_once() -> None:
    with torch.inference_mode():
        pixels = causal_vae().decode(torch.randn(1, 4, 6, 7, 9), tiling=TILING)
    assert pixels is not None
    assert pixels.shape == (1, 21, 3, 56, 72)


@pytest.mark.parametrize(
    ("frames", "spans"),
    [(1, [(0, 1)]), (3, [(0, 3)]), (4, [(0, 3), (2, 4)]), (5, [(0, 3), (2, 5)]), (6, [(0, 3), (2, 5), (4, 6)])],
)  # fmt: skip
def test_tiles_of_time_share_one_latent_frame(frames: int, spans: list[tuple[int, int]]) -> None:
    assert [(span.start, span.stop) for span in TILING.grid((4, 8)).time_spans(frames)] == spans


def test_impossible_sizes_are_refused_with_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"num_frames=16, the causal VAE needs 4n\+1"):
        causal_vae().latent_shape(16, 32, 32)
    with pytest.raises(ValueError, match="latent_frames=1, a tile needs 2 or more"):
        Tiling(latent_frames=1)
    with pytest.raises(ValueError, match=r"overlap=1.0"):
        Tiling(overlap=1.0)
    with pytest.raises(ValueError, match="attention 'Attn' is not known, allowed AttnBlock3DFix, AttnBlock3D"):
        CausalVAE(CausalVAEConfig(hidden_size=32, encoder_attention="Attn"))
    with pytest.raises(ValueError, match="resampling 'x' is not known"):
        CausalVAE(CausalVAEConfig(hidden_size=32, decoder_spatial_upsample=("", "x", "", "")))
    with pytest.raises(ValueError, match="filters=9, needs a multiple of num_groups=4"):
        TemporalVAEConfig(filters=9, num_groups=4)
    with pytest.raises(ValueError, match="block_out_channels 9 does not divide by norm_num_groups=4"):
        ImageVAEConfig(block_out_channels=(8, 9), norm_num_groups=4)
    with pytest.raises(ValueError, match="attn_resolutions="):
        CausalVAEConfig.from_published({"attn_resolutions": [16]})
