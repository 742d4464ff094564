"""Samplers of models that predict noise: DDIM (arXiv 2010.02502), PNDM (arXiv 2202.09778), Euler ancestral (k-diffusion).

All three use 1000 training levels, with betas that rise linearly from 0.0001 to 0.02. Timesteps and coefficients are plain
numbers, made before the loop without torch, so that the broadcast plan is known before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000
MIN_PNDM_STEPS = 4
RUNGE_KUTTA_CALLS = 12


@cache
def signal_levels() -> tuple[float, ...]:
    """Returns, per training level, the share of the variance that is signal: float32 values, as published."""
    betas = np.linspace(1e-4, 0.02, NUM_TRAIN_TIMESTEPS).astype(np.float32)
    kept = np.cumprod((np.float32(1) - betas).astype(np.float64))
    return tuple(float(level) for level in kept.astype(np.float32))


def _stride(num_steps: int) -> int:
    if not 1 <= num_steps <= NUM_TRAIN_TIMESTEPS:
        raise ValueError(f"num_steps={num_steps}, allowed 1 to {NUM_TRAIN_TIMESTEPS}")
    return NUM_TRAIN_TIMESTEPS // num_steps


@cache
def ddim_timesteps(num_steps: int) -> tuple[float, ...]:
    """Returns DDIM's levels with leading spacing: the last is 0, the first lies one stride below 1000."""
    stride = _stride(num_steps)
    return tuple(float(i * stride) for i in reversed(range(num_steps)))


@cache
def pndm_timesteps(num_steps: int) -> tuple[float, ...]:
    """Returns the level of each of PNDM's `num_steps + 9` model calls, repeated ones included.

    The first three steps make four Runge-Kutta calls each: one at the step's level, two half a stride lower, one at the
    next level.
    Raises ValueError for fewer than 4 steps.
    """
    stride = _stride(num_steps)
    if num_steps < MIN_PNDM_STEPS:
        raise ValueError(f"num_steps={num_steps}, PNDM needs {MIN_PNDM_STEPS} or more")
    levels = [i * stride for i in reversed(range(num_steps))]
    calls: list[int] = []
    for level, following in pairwise(levels[:4]):
        calls += [level, following + stride // 2, following + stride // 2, following]
    return tuple(float(level) for level in calls + levels[3:])


@cache
def euler_ancestral_timesteps(num_steps: int) -> tuple[float, ...]:
    """Returns evenly spaced levels from 999 to 0, float32 values between the training levels."""
    levels = np.linspace(0, NUM_TRAIN_TIMESTEPS - 1, num_steps, dtype=np.float32)[::-1]
    return tuple(float(level) for level in levels)


@dataclass(frozen=True, kw_only=True)
class DDIM:
    """Steps one clip deterministically (eta 0): estimates data from the predicted noise, then noises it to the next level."""

    num_steps: int
    init_noise_sigma: float = field(default=1.0, init=False)

    @property
    def timesteps(self) -> tuple[float, ...]:
        """The noise level of every model call."""
        return ddim_timesteps(self.num_steps)

    def model_input(self, latents: Tensor, step: int) -> Tensor:
        """Returns the latents as they are."""
        return latents

    def active_frames(self, step: int) -> None:
        """Returns None: all frames are generated."""

    def advance(self, latents: Tensor, model_input: Tensor, noise: Tensor, step: int) -> Tensor:
        """Returns the latents at the next level."""
        levels, stride = signal_levels(), _stride(self.num_steps)
        timestep = int(self.timesteps[step])
        signal = levels[timestep]
        target = levels[timestep - stride] if timestep >= stride else 1.0
        data = (latents - (1 - signal) ** 0.5 * noise) / signal**0.5
        return target**0.5 * data + (1 - target) ** 0.5 * noise


@dataclass(kw_only=True)
class PNDM:
    """Steps one clip by the pseudo linear multi-step method, after three pseudo Runge-Kutta steps.

    Lives as long as one clip: it keeps the last predictions, and the latents at the start of a Runge-Kutta step.
    """

    num_steps: int
    init_noise_sigma: float = field(default=1.0, init=False)
    predictions: list[Tensor] = field(default_factory=list, init=False)
    """One per finished step, the latest last; at most 4."""
    _departure: Tensor | None = field(default=None, init=False)
    _slope: Tensor | None = field(default=None, init=False)

    @property
    def timesteps(self) -> tuple[float, ...]:
        """The noise level of every model call."""
        return pndm_timesteps(self.num_steps)

    def model_input(self, latents: Tensor, step: int) -> Tensor:
        """Returns the latents as they are."""
        return latents

    def active_frames(self, step: int) -> None:
        """Returns None: all frames are generated."""

    def advance(self, latents: Tensor, model_input: Tensor, noise: Tensor, step: int) -> Tensor:
        """Returns the latents of the next model call."""
        if step < RUNGE_KUTTA_CALLS:
            return self._runge_kutta(latents, noise, step)
        timestep = int(self.timesteps[step])
        self.predictions = [*self.predictions[-3:], noise]
        p = self.predictions
        slope = (55 * p[-1] - 59 * p[-2] + 37 * p[-3] - 9 * p[-4]) / 24
        return self._transfer(latents, slope, timestep, timestep - _stride(self.num_steps))

    def _runge_kutta(self, latents: Tensor, noise: Tensor, call: int) -> Tensor:
        stage = call % 4
        timestep = int(self.timesteps[call])
        if stage == 0:
            self._departure, self._slope = latents, noise / 6
            self.predictions.append(noise)
        else:
            assert self._slope is not None, "a Runge-Kutta step begins with stage 0"
            self._slope = self._slope + noise / (6 if stage == 3 else 3)
        assert self._departure is not None, "a Runge-Kutta step begins with stage 0"
        # Stages 0 and 2 end half a stride below their own level, stages 1 and 3 at it.
        target = timestep - (_stride(self.num_steps) // 2 if stage % 2 == 0 else 0)
        start = int(self.timesteps[call - stage])
        return self._transfer(self._departure, self._slope if stage == 3 else noise, start, target)

    @staticmethod
    def _transfer(latents: Tensor, noise: Tensor, start: int, target: int) -> Tensor:
        """Moves latents from one level to another along a noise direction (the paper's transfer part, equation 11)."""
        levels = signal_levels()
        before, after = levels[start], levels[max(target, 0)]
        scale = (after / before) ** 0.5
        reach = before * (1 - after) ** 0.5 + (before * (1 - before) * after) ** 0.5
        return scale * latents - (after - before) / reach * noise


@dataclass(frozen=True, kw_only=True)
class EulerAncestral:
    """Steps one clip by Euler's method: each step goes below its target level, then adds new noise to come back up to it.

    `noise(step)` gives that noise, this rank's part of the noise for the whole latents. It is called in the order of steps.
    """

    num_steps: int
    noise: Callable[[int], Tensor]

    @property
    def timesteps(self) -> tuple[float, ...]:
        """The noise level of every model call."""
        return euler_ancestral_timesteps(self.num_steps)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The ratio of noise to signal at every timestep (float32 values), and 0 at the end."""
        return euler_sigmas(self.num_steps)

    @property
    def init_noise_sigma(self) -> float:
        """The factor by which the initial noise is multiplied."""
        return max(self.sigmas)

    def model_input(self, latents: Tensor, step: int) -> Tensor:
        """Returns the latents scaled to variance 1."""
        return latents / (self.sigmas[step] ** 2 + 1) ** 0.5

    def active_frames(self, step: int) -> None:
        """Returns None: all frames are generated."""

    def advance(self, latents: Tensor, model_input: Tensor, noise: Tensor, step: int) -> Tensor:
        """Returns the latents after the step, from the predicted noise."""
        sigma, target = self.sigmas[step : step + 2]
        fresh = (target**2 * (sigma**2 - target**2) / sigma**2) ** 0.5
        lower = (target**2 - fresh**2) ** 0.5
        latents = latents + noise * (lower - sigma)
        return latents + self.noise(step) * fresh if fresh > 0 else latents


@cache
def euler_sigmas(num_steps: int) -> tuple[float, ...]:
    """Returns the ratio of noise to signal at Euler's timesteps, interpolated between training levels, and 0 at the end."""
    signal = np.array(signal_levels(), dtype=np.float32)
    ratios = ((np.float32(1) - signal) / signal) ** np.float32(0.5)
    at = np.array(euler_ancestral_timesteps(num_steps))
    sigmas = np.interp(at, np.arange(NUM_TRAIN_TIMESTEPS), ratios).astype(np.float32)
    return (*(float(sigma) for sigma in sigmas), 0.0)
