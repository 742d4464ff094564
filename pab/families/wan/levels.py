"""Wan's noise levels, in plain numbers, so that a clip is planned before anything is loaded."""

from __future__ import annotations

from functools import cache

import numpy as np

NUM_TRAIN_TIMESTEPS = 1000
_BELOW_ONE = 1e-6
"""The multi-step solver takes the logarithm of the signal, so the first level stays this much below pure noise."""


@cache
def shifted_timesteps(num_steps: int, shift: float) -> tuple[float, ...]:
    """Returns the whole-numbered timestep of every step: evenly spaced levels, moved towards noise by `shift`.

    Raises ValueError for steps outside of 1 to 1000.
    """
    if not 1 <= num_steps <= NUM_TRAIN_TIMESTEPS:
        raise ValueError(f"num_steps={num_steps}, allowed 1 to {NUM_TRAIN_TIMESTEPS}")
    even = np.linspace(1, 1 / NUM_TRAIN_TIMESTEPS, num_steps + 1)[:-1]
    levels = shift * even / (1 + (shift - 1) * even)
    if abs(levels[0] - 1) < _BELOW_ONE:
        levels[0] -= _BELOW_ONE
    return tuple(float(level) for level in (levels * NUM_TRAIN_TIMESTEPS).astype(np.int64))
