"""Wan's noise levels, in plain numbers, so that a clip is planned before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

NUM_TRAIN_TIMESTEPS = 1000
_BELOW_ONE = 1e-6
"""The multi-step solver takes the logarithm of the signal, so the first level stays this much below pure noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FewSteps:
    """The fixed levels of distilled weights. `levels`: the share of noise; `timesteps`: what the transformer is told.

    `renoises`: after a step fresh noise is added to the predicted video, up to the next level; else the step goes straight.
    """

    levels: tuple[float, ...]
    timesteps: tuple[float, ...]
    renoises: bool = False


def shifted(level: float, shift: float) -> float:
    """Returns a level moved towards noise."""
    return shift * level / (1 + (shift - 1) * level)


def _told(levels: tuple[float, ...]) -> tuple[float, ...]:
    """Returns the timesteps of levels, in float32 as the library has them."""
    return tuple(float(np.float32(level) * np.float32(NUM_TRAIN_TIMESTEPS)) for level in levels)


_STRAIGHT = tuple(shifted(level, 5.0) for level in (1.0, 0.75, 0.5, 0.25))
LIGHTNING4 = FewSteps(levels=_STRAIGHT, timesteps=_told(_STRAIGHT))
"""Of LightX2V's distilled Wan 2.1 and of Wan 2.2 Lightning: Euler's method, shift 5. Of two experts each has two steps."""
DMD3 = FewSteps(
    # The levels of FastWan's table, of 1000 levels shifted by 8, that are nearest to its timesteps.
    levels=(1.0, shifted(0.28, 8.0), shifted(0.12, 8.0)),
    timesteps=(1000.0, 757.0, 522.0),
    renoises=True,
)
"""Of FastWan, distilled by distribution matching."""
FEW_STEPS = {"lightning4": LIGHTNING4, "dmd3": DMD3}


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
