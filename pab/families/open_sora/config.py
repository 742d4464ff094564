"""Sizes and constants of Open-Sora 1.2, and how its clips take references. No torch here."""

from __future__ import annotations

from pathlib import Path

from pab.conditioning.references import ReferenceRules
from pab.families.open_sora.sizes import (
    CHUNK_FRAMES,
    CHUNK_LATENTS,
    latent_frames,
    nominal_size,
)
from pab.family import FIGURES_FILE, read_figures

DEPTH = 28


FIGURES = read_figures(Path(__file__).with_name(FIGURES_FILE))["open_sora"]


MAX_TOKENS = 450_000
MAX_TEXT_TOKENS = 300
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
