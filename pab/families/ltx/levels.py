"""LTX-Video's noise levels, in plain numbers, so that a clip is planned before anything is loaded."""

from __future__ import annotations

from functools import cache

import numpy as np

from pab.library.stretched_levels import NUM_TRAIN_TIMESTEPS, even_levels

FINE_NOISE = 0.025
"""How much noise the first half of the steps takes away, in even steps, in the models from 0.9.5 on."""
DISTILLED_TIMESTEPS = tuple(float(np.float32(level)) for level in (1000, 993, 987, 981, 975, 909, 725, 0.03))
"""The steps of `ltx_13b_distilled`, as the library's documentation has them; the last is nearly without noise."""
PRESET_LEVELS = (1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725, 0.4219)
"""The levels of the preset `distilled8`: those of LTX-Video's own program for both of its passes, in one.

They are not the steps above, and cannot become them: digests name a preset and a family, and so stand for these numbers.
"""


@cache
def preset_timesteps() -> tuple[float, ...]:
    """Returns the timesteps of `PRESET_LEVELS`: float32 values."""
    return tuple(float(np.float32(level) * np.float32(NUM_TRAIN_TIMESTEPS)) for level in PRESET_LEVELS)


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
