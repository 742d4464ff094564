"""CogVideoX's noise levels, in plain numbers, so that a clip is planned before anything is loaded."""

from __future__ import annotations

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
