"""Noise levels of flow matching that are evenly spaced and then moved by a fixed shift, in plain numbers.

They are those of the library's `FlowMatchEulerDiscreteScheduler` with `shift`. No torch here.
"""

from __future__ import annotations

from functools import cache

import numpy as np

NUM_TRAIN_TIMESTEPS = 1000


@cache
def even_levels(num_steps: int) -> tuple[float, ...]:
    """Returns the evenly spaced levels that are then moved. Raises ValueError for steps outside of 1 to 1000."""
    if not 1 <= num_steps <= NUM_TRAIN_TIMESTEPS:
        raise ValueError(f"num_steps={num_steps}, allowed 1 to {NUM_TRAIN_TIMESTEPS}")
    return tuple(float(level) for level in np.linspace(1.0, 0.0, num_steps + 1)[:-1])


@cache
def moved_timesteps(num_steps: int, shift: float) -> tuple[float, ...]:
    """Returns the timestep of every step, from 1000 down: float32 values, moved towards noise by `shift`.

    Raises ValueError like `even_levels`.
    """
    even = np.array(even_levels(num_steps)).astype(np.float32)
    levels = shift * even / (1 + (shift - 1) * even)
    return tuple(float(level) for level in levels.astype(np.float32) * np.float32(NUM_TRAIN_TIMESTEPS))
