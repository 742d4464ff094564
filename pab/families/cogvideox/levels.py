"""CogVideoX's noise levels, in plain numbers, so that a clip is planned before anything is loaded."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

NUM_TRAIN_TIMESTEPS = 1000


@cache
def trailing_timesteps(num_steps: int) -> tuple[float, ...]:
    """Returns evenly spaced whole timesteps that begin at the last one, 999. Raises ValueError beyond 1 to 1000 steps."""
    if not 1 <= num_steps <= NUM_TRAIN_TIMESTEPS:
        raise ValueError(f"num_steps={num_steps}, allowed 1 to {NUM_TRAIN_TIMESTEPS}")
    levels = np.arange(NUM_TRAIN_TIMESTEPS, 0, -NUM_TRAIN_TIMESTEPS / num_steps)
    return tuple(float(level) - 1 for level in np.round(levels))


def dynamic_guidance(guidance_scale: float, num_steps: int) -> tuple[float, ...]:
    """Returns the guidance scale of every step as the published program changes it over a clip, from 1 on.

    Its formula has the timestep, up to 999, where the number of the step may have been meant; it is kept, as clips were made
    with it.
    """
    return tuple(
        1 + guidance_scale * (1 - math.cos(math.pi * ((num_steps - timestep) / num_steps) ** 5.0)) / 2
        for timestep in trailing_timesteps(num_steps)
    )
