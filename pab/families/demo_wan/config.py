"""Sizes and constants of demo_wan. No torch here."""

from __future__ import annotations

from pab.families.wan.levels import shifted_timesteps
from pab.family import ClipRequest

NUM_LAYERS = 8
FLOW_SHIFT = 3.0
"""Of the noise levels: of 30 steps, 11 lie above 0.85, where the text decides the direction."""
LATENT_STRIDE = (2, 4, 4)
TOKEN_SIDE = 8
"""Pixels of a token's side: 4 of a latent's, 2 latents a token."""


def clip_shift(request: ClipRequest) -> float:
    """Returns the shift of a clip's noise levels."""
    return FLOW_SHIFT if request.flow_shift is None else request.flow_shift


def demo_wan_timesteps(request: ClipRequest, _precision: str) -> tuple[float, ...]:
    """Returns UniPC's timesteps, whole numbers; embedded in float32 in any precision."""
    return shifted_timesteps(request.num_steps, clip_shift(request))


def demo_wan_tokens(num_frames: int, height: int, width: int) -> int:
    """Counts latent tokens after patching."""
    return (num_frames // LATENT_STRIDE[0]) * (height // TOKEN_SIDE) * (width // TOKEN_SIDE)
