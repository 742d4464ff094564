"""Sizes and constants of Latte-1. No torch here."""

from __future__ import annotations

from pathlib import Path

from pab.family import FIGURES_FILE, ClipRequest, read_figures
from pab.sampling.samplers import ddim_timesteps

DEPTH = 28


NUM_FRAMES = 16


MAX_TEXT_TOKENS = 120


NUM_STEPS = 50


FIGURES = read_figures(Path(__file__).with_name(FIGURES_FILE))["latte"]


def latte_timesteps(request: ClipRequest, _precision: str) -> tuple[float, ...]:
    """Returns DDIM's timesteps: whole numbers, which no precision rounds before the model embeds them."""
    return ddim_timesteps(request.num_steps)


def latte_tokens(num_frames: int, height: int, width: int) -> int:
    """Counts latent tokens after patching: 16x16 pixels of a frame each."""
    return num_frames * (height // 16) * (width // 16)
