"""The tiles that Open-Sora-Plan's CausalVAE decodes latents in."""

from __future__ import annotations

from dataclasses import dataclass

from pab.vae.tiles import TileGrid


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
        if not 0 <= self.overlap < 1 or int(self.latent_size * (1 - self.overlap)) < 1:
            raise ValueError(f"overlap={self.overlap} of latent_size={self.latent_size}, needs 0 up to but without 1")

    def grid(self, strides: tuple[int, int]) -> TileGrid:
        """Returns where the tiles lie. `strides`: frames and pixels per latent."""
        step, fade = int(self.latent_size * (1 - self.overlap)), int(self.sample_size * self.overlap)
        kept = self.sample_size - fade
        return TileGrid(
            size=(self.latent_size, self.latent_size),
            step=(step, step),
            fade=(fade, fade),
            kept=(kept, kept),
            strides=strides,
            frames=self.latent_frames,
            frame_step=self.latent_frames - 1,
        )
