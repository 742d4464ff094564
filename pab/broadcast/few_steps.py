"""What a clip of fewer steps than its rules were made for may reuse: no longer stretch of noise than there.

Rules count steps, and state windows of noise levels. With few steps each step is a longer stretch of noise, and a window
begins after one step: before the shape of what is shown is decided, so that videos came out empty. What was measured is in
docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

NO_REUSE_STEPS = 8
"""Clips of at most so many steps reuse nothing, if the rules were made for more: distilled models render in 4 to 8."""
LEAST_FULL_STEPS = 3
"""Every shorter clip computes as many steps in full before it reuses, or as many as a clip of full length does."""
_ROUNDING = 1e-6

Sources = Sequence[Sequence[int]]
"""Per step and site, the step whose output is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseLimits:
    """What a clip may reuse at most. `begin`: the first step that may; before it all compute.

    `levels`: each step's noise level. `places`: where it lies among those of a clip of full length, as a step of that clip,
    perhaps between two: where levels are not evenly spaced, a step is not the same noise everywhere. `longest`: by kind of
    site, over how many levels and places a reuse goes at most in a clip of full length.
    """

    begin: int
    levels: tuple[float, ...]
    places: tuple[float, ...]
    longest: Mapping[str, tuple[float, float]]

    def allows(self, kind: str, step: int, source: int) -> bool:
        """Whether a site of this kind may reuse at `step` what it computed at step `source`."""
        levels, places = self.longest.get(kind, (0.0, 0.0))
        return (
            self.levels[source] - self.levels[step] <= levels + _ROUNDING
            and self.places[step] - self.places[source] <= places + _ROUNDING
        )


def reuse_limits(
    timesteps: Sequence[float], full_length: Sequence[float], full_sources: Sources, kinds: Sequence[str]
) -> ReuseLimits | None:
    """Returns the limits of a clip; None if its rules alone decide.

    `timesteps`, `full_length`: the noise levels of the clip, and of a clip with as many steps as the rules were made for.
    `full_sources`: what the rules give for the latter; `kinds`: of its sites. Rules that reuse from the second step on say
    themselves that no beginning is to be kept free, and are taken at their word.
    """
    first_reuse = next((step for step, row in enumerate(full_sources) if any(source != step for source in row)), None)
    begin = reuse_begins(timesteps, full_length, first_reuse)
    if begin == 0:
        return None
    return ReuseLimits(
        begin=begin,
        levels=tuple(timesteps),
        places=tuple(_place(timestep, full_length) for timestep in timesteps),
        longest=_longest(full_length, full_sources, kinds),
    )


def reuse_begins(timesteps: Sequence[float], full_length: Sequence[float], first_reuse: int | None) -> int:
    """Returns the step from which a clip may reuse; 0 if its rules alone decide.

    `first_reuse`: the first step of a clip of full length at which anything is reused; None if nothing is. No reuse before
    the clip has come to the noise level of that step, nor before `LEAST_FULL_STEPS` steps.
    """
    steps = len(timesteps)
    if steps >= len(full_length) or first_reuse is None or first_reuse <= 1:
        return 0
    if steps <= NO_REUSE_STEPS:
        return steps
    level = full_length[first_reuse]
    arrived = next((step for step, timestep in enumerate(timesteps) if timestep <= level), steps)
    return max(min(first_reuse, LEAST_FULL_STEPS), arrived)


def _place(timestep: float, full_length: Sequence[float]) -> float:
    """Returns where a noise level lies among falling ones: 2.5 is halfway from the third to the fourth."""
    for step, (high, low) in enumerate(pairwise(full_length)):
        if timestep >= low:
            return step + (high - timestep) / (high - low) if high > low else float(step)
    last = len(full_length) - 1
    # Below the last level there is only an image without noise, at 0.
    return last + 1 - timestep / full_length[-1] if full_length[-1] > 0 else float(last)


def _longest(
    full_length: Sequence[float], full_sources: Sources, kinds: Iterable[str]
) -> dict[str, tuple[float, float]]:
    """Returns by kind of site over how many levels and steps a clip of full length reuses at most."""
    longest: dict[str, tuple[float, float]] = {}
    # Most sites of a kind decide alike.
    for kind, column in {*zip(kinds, zip(*full_sources, strict=True), strict=True)}:
        reused = {*zip(column, range(len(full_length)), strict=True)}
        levels, steps = longest.get(kind, (0.0, 0.0))
        longest[kind] = (
            max(levels, *(full_length[source] - full_length[step] for source, step in reused)),
            max(steps, *(float(step - source) for source, step in reused)),
        )
    return longest
