"""LTX-Video's noise levels, in plain numbers, so that a clip is planned before anything is loaded."""

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
def moved_timesteps(num_steps: int, num_tokens: int) -> tuple[float, ...]:
    """Returns the timestep of every step, 1000 down to 100: float32 values, moved further for clips of more tokens.

    Raises ValueError like `even_levels`.
    """
    even = np.array(even_levels(num_steps)).astype(np.float32)
    shift = math.exp(log_shift(num_tokens))
    signal = 1 - shift / (shift + (1 / even - 1))
    # Stretched, so that the last step is at its level whatever the shift.
    levels = 1 - signal / (signal[-1] / (1 - LAST_LEVEL))
    return tuple(float(level) for level in levels.astype(np.float32) * np.float32(NUM_TRAIN_TIMESTEPS))


FINE_NOISE = 0.025
"""How much noise the first half of the steps takes away, in even steps, in the models from 0.9.5 on."""
DISTILLED_TIMESTEPS = tuple(float(np.float32(level)) for level in (1000, 993, 987, 981, 975, 909, 725, 0.03))
"""What the distilled models from 0.9.7 on were made for, by the library's documentation."""


@cache
def quadratic_timesteps(num_steps: int) -> tuple[float, ...]:
    """Returns the timestep of every step of the models from 0.9.5 on: float32 values, the same for all sizes of clips.

    The first half of the steps lies between 1000 and 975, evenly; from there on they grow with their square. Raises
    ValueError like `even_levels`.
    """
    even_levels(num_steps)  # for its check
    fine = num_steps // 2
    rest = num_steps - fine
    excess = fine - FINE_NOISE * num_steps
    square = excess / (fine * rest**2)
    linear = FINE_NOISE / fine - 2 * excess / (rest**2)
    constant = square * (fine**2)
    taken = [i * FINE_NOISE / fine for i in range(fine)]
    taken += [square * (i**2) + linear * i + constant for i in range(fine, num_steps)]
    return tuple(float(np.float32(1.0 - noise) * np.float32(NUM_TRAIN_TIMESTEPS)) for noise in taken)


def given_levels(timesteps: tuple[float, ...]) -> list[float]:
    """Returns the noise levels of timesteps as a scheduler has them: float32 quotients."""
    return [float(np.float32(timestep) / np.float32(NUM_TRAIN_TIMESTEPS)) for timestep in timesteps]
