"""The tiles that Open-Sora-Plan's CausalVAE decodes latents in, and encodes pixels in."""

from __future__ import annotations

from dataclasses import dataclass

from pab.vae.tiles import TileGrid


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """Sizes of a tile, in latents and in pixels; `overlap` is the share of a tile's side that its neighbour repeats.

    The published VAE has each size as a number of its own, and so has this one. Raises ValueError for tiles that do not
    move on.
    """

    latent_size: int = 32
    sample_size: int = 256
    latent_frames: int = 17
    sample_frames: int = 65
    overlap: float = 0.25

    def __post_init__(self) -> None:
        for name in ("latent_frames", "sample_frames"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name}={getattr(self, name)}, a tile needs 2 or more: one is its neighbour's")
        for name in ("latent_size", "sample_size"):
            if not 0 <= self.overlap < 1 or int(getattr(self, name) * (1 - self.overlap)) < 1:
                raise ValueError(f"overlap={self.overlap} of {name}={getattr(self, name)}, needs 0 up to but without 1")

    def grid(self, strides: tuple[int, int]) -> TileGrid:
        """Returns where the tiles of latents lie. `strides`: frames and pixels per latent."""
        return self._grid(self.latent_size, self.sample_size, self.latent_frames, strides)

    def encode_grid(self) -> TileGrid:
        """Returns where the tiles of pixels lie; what is kept and faded of each counts in latents."""
        # Tiles of time keep all that the encoder makes of them: no stride is asked for.
        return self._grid(self.sample_size, self.latent_size, self.sample_frames, (1, 1))

    def _grid(self, size: int, result_size: int, frames: int, strides: tuple[int, int]) -> TileGrid:
        step, fade = int(size * (1 - self.overlap)), int(result_size * self.overlap)
        kept = result_size - fade
        return TileGrid(
            size=(size, size),
            step=(step, step),
            fade=(fade, fade),
            kept=(kept, kept),
            strides=strides,
            frames=frames,
            frame_step=frames - 1,
            cuts_small=True,
        )
