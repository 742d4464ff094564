"""Where reuse may begin in a clip of fewer steps than its rules were made for.

Rules state windows of noise levels, and with few steps a window begins after one step: before the shape of what is shown is
decided, so half of the videos were empty. What was measured is in docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Sequence

NO_REUSE_STEPS = 8
"""Clips of at most so many steps reuse nothing, if the rules were made for more: distilled models render in 4 to 8."""
LEAST_FULL_STEPS = 3
"""Every shorter clip computes as many steps in full before it reuses, or as many as a clip of full length does."""


def reuse_begins(timesteps: Sequence[float], full_length: Sequence[float], first_reuse: int | None) -> int:
    """Returns the step from which a clip may reuse; 0 if its rules alone decide.

    `timesteps`, `full_length`: the noise levels of the clip, and of a clip with as many steps as the rules were made for.
    `first_reuse`: the first step of the latter at which anything is reused; None if nothing is. No reuse before the clip
    has come to the noise level of that step, nor before `LEAST_FULL_STEPS` steps. Rules that reuse from the second step on
    say themselves that no beginning is to be kept free.
    """
    steps = len(timesteps)
    if steps >= len(full_length) or first_reuse is None or first_reuse <= 1:
        return 0
    if steps <= NO_REUSE_STEPS:
        return steps
    level = full_length[first_reuse]
    arrived = next((step for step, timestep in enumerate(timesteps) if timestep <= level), steps)
    return max(min(first_reuse, LEAST_FULL_STEPS), arrived)
