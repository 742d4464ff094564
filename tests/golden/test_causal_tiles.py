"""Tiles of Open-Sora-Plan's VAE in sizes of the test's choice, against the same tiles computed one by one."""

import pytest
import torch
from torch import Tensor

from pab.families.open_sora_plan.causal_tiles import Tiling
from pab.families.open_sora_plan.causal_vae import CausalVAE, CausalVAEConfig
from pab.parallel.mesh import Axis
from pab.vae.tiles import tiled_decode, tiled_map

TILINGS = (
    # of a tile: size in latents and in pixels, latent frames and frames, overlap; then the shape of the latents
    ((4, 32, 3, 9, 0.25), (5, 6, 5)),
    ((3, 24, 2, 5, 0.4), (4, 5, 7)),
    ((4, 32, 2, 5, 0.5), (3, 4, 3)),
    ((5, 40, 3, 17, 0.0), (3, 7, 4)),
    ((4, 28, 3, 9, 0.25), (3, 6, 6)),
)


@pytest.mark.parametrize(("sizes", "shape"), TILINGS)
def test_tiles_with_sizes_of_their_own_are_those_of_the_reference(
    sizes: tuple[int, int, int, int, float], shape: tuple[int, int, int]
) -> None:
    latent, pixels, frames, pixel_frames, overlap = sizes
    tiling = Tiling(
        latent_size=latent, sample_size=pixels, latent_frames=frames, sample_frames=pixel_frames, overlap=overlap
    )
    z = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(1))
    ours = tiled_decode(lambda _, tile: larger(tile), z, grid=tiling.grid((4, 8)), axis=Axis())
    theirs = in_tiles(larger, z, size=latent, result=pixels, frames=frames, overlap=overlap)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    x = larger(z)
    ours = tiled_map(smaller, x, grid=tiling.encode_grid())
    theirs = in_tiles(smaller, x, size=pixels, result=latent, frames=pixel_frames, overlap=overlap)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def larger(z: Tensor) -> Tensor:
    """Replaces a decoder: 4n + 1 frames, 8x8 pixels per latent, and every number depends on where its tile begins."""
    whole = z.repeat_interleave(4, 2)[:, :, 3:].repeat_interleave(8, 3).repeat_interleave(8, 4)
    return sum(whole.cumsum(dim) / (10 + dim) for dim in (2, 3, 4))


def smaller(x: Tensor) -> Tensor:
    """Replaces an encoder, as `larger` replaces a decoder."""
    return sum(x.cumsum(dim) / (10 + dim) for dim in (2, 3, 4))[:, :, ::4, ::8, ::8]


def test_the_causal_vae_encodes_in_tiles_of_pixels() -> None:
    tiling = Tiling(latent_size=2, sample_size=16, latent_frames=2, sample_frames=5, overlap=0.5)
    x = torch.randn(1, 3, 5, 24, 8, generator=torch.Generator().manual_seed(2))
    vae = CausalVAE(CausalVAEConfig(hidden_size=32, hidden_size_mult=(1, 1, 1, 1), num_res_blocks=1)).eval()
    with torch.inference_mode():
        ours = vae.encode(x, tiling=tiling).moments
        theirs = in_tiles(lambda tile: vae.quant_conv(vae.encoder(tile)), x, size=16, result=2, frames=5, overlap=0.5)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def in_tiles(apply, x: Tensor, *, size: int, result: int, frames: int, overlap: float) -> Tensor:
    """Applies a function to tiles one by one: spans of time that share one frame, and rows of tiles in each span."""
    step, fade = int(size * (1 - overlap)), int(result * overlap)
    spans = []
    for start in range(0, max(x.shape[2] - 1, 1), frames - 1):
        span = x[:, :, start : start + frames]
        corners = [[(y, c) for c in range(0, x.shape[4], step)] for y in range(0, x.shape[3], step)]
        tiles = [[apply(span[..., y : y + size, c : c + size]) for y, c in row] for row in corners]
        rows = []
        for i, row in enumerate(tiles):
            for j, tile in enumerate(row):
                if i:
                    blend(tiles[i - 1][j], tile, 3, fade)
                if j:
                    blend(row[j - 1], tile, 4, fade)
            rows.append(torch.cat([tile[..., : result - fade, : result - fade] for tile in row], dim=4))
        whole = torch.cat(rows, dim=3)
        spans.append(whole[:, :, 1:] if start else whole)
    return torch.cat(spans, dim=2)


def blend(before: Tensor, tile: Tensor, dim: int, extent: int) -> None:
    extent = min(before.shape[dim], tile.shape[dim], extent)
    for i in range(extent):
        old = before.select(dim, before.shape[dim] - extent + i)
        tile.select(dim, i).copy_(old * (1 - i / extent) + tile.select(dim, i) * (i / extent))
