"""Sizes and constants of Open-Sora 1.2, and how its clips take references. No torch here."""

from __future__ import annotations

from pab.conditioning.references import ReferenceRules
from pab.families.open_sora.sizes import (
    CHUNK_FRAMES,
    CHUNK_LATENTS,
    latent_frames,
    nominal_size,
)

DEPTH = 28


MAX_TOKENS = 450_000
"""720p at 16 seconds."""
REFERENCES = ReferenceRules(
    chunk_frames=CHUNK_FRAMES,
    chunk_latents=CHUNK_LATENTS,
    latent_frames=latent_frames,
    align=CHUNK_LATENTS,
    condition_frame_length=CHUNK_LATENTS,
    # The published pipeline brings references to nominal sizes; the VAE drops what is beyond whole latents.
    pixel_size=nominal_size,
)
