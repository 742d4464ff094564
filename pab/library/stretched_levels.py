"""Noise levels of flow matching that move with a clip's size and end at a level of their own, in plain numbers.

They are those of the library's `FlowMatchEulerDiscreteScheduler` with `shift_terminal`. No torch here.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

NUM_TRAIN_TIMESTEPS = 1000
MIN_STEPS = 2
"""One step alone would be at pure noise and at the last level at once."""
SHIFTS = ((1024, 0.95), (4096, 2.05))
"""Two numbers of latent tokens, and the logarithms of their shifts: a straight line through them gives all others."""
LAST_LEVEL = 0.1
"""The noise level of the last step; what is left of it the decoder takes away."""
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": NUM_TRAIN_TIMESTEPS,
    "use_dynamic_shifting": True,
    "base_image_seq_len": SHIFTS[0][0],
    "base_shift": SHIFTS[0][1],
    "max_image_seq_len": SHIFTS[1][0],
    "max_shift": SHIFTS[1][1],
    "shift_terminal": LAST_LEVEL,
}
"""The library's scheduler of these levels, as models are published with it."""


def log_shift(num_tokens: int) -> float:
    """Returns by how much, as a logarithm, the levels of a clip of this many latent tokens are moved towards noise."""
    (few, small), (many, large) = SHIFTS
    slope = (large - small) / (many - few)
    return num_tokens * slope + (small - slope * few)


@cache
def even_levels(num_steps: int) -> tuple[float, ...]:
    """Returns the evenly spaced levels that are then moved. Raises ValueError for steps outside of 2 to 1000."""
    if not MIN_STEPS <= num_steps <= NUM_TRAIN_TIMESTEPS:
        raise ValueError(f"num_steps={num_steps}, allowed {MIN_STEPS} to {NUM_TRAIN_TIMESTEPS}")
    return tuple(float(level) for level in np.linspace(1.0, 1 / num_steps, num_steps))


@cache
def moved_levels(num_steps: int, num_tokens: int) -> tuple[float, ...]:
    """Returns the noise level of every step, 1 down to 0.1: float32 values, moved further for clips of more tokens.

    Raises ValueError like `even_levels`.
    """
    even = np.array(even_levels(num_steps)).astype(np.float32)
    shift = math.exp(log_shift(num_tokens))
    signal = 1 - shift / (shift + (1 / even - 1))
    # Stretched, so that the last step is at its level whatever the shift.
    levels = 1 - signal / (signal[-1] / (1 - LAST_LEVEL))
    return tuple(float(level) for level in levels.astype(np.float32))


@cache
def moved_timesteps(num_steps: int, num_tokens: int) -> tuple[float, ...]:
    """Returns the timestep of every step, 1000 down to 100: float32 values. Raises ValueError like `even_levels`."""
    levels = np.array(moved_levels(num_steps, num_tokens), dtype=np.float32)
    return tuple(float(level) for level in levels * np.float32(NUM_TRAIN_TIMESTEPS))
