"""Open-Sora 1.2's rectified flow: noise levels, the update of one step, frame conditioning and the training loss.

`timesteps` needs no torch: the broadcast plan is made from it before anything is loaded. Its arithmetic is float32
throughout. Height, width and length are rounded to the model's precision first, as in the published pipeline.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000


def round_to(precision: str, value: float) -> float:
    """Returns the float32 or bfloat16 number nearest to a value (ties to even), as a Python float."""
    bits = int(np.float32(value).view(np.uint32))
    if precision == "bfloat16":
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    elif precision != "float32":
        raise ValueError(f"precision={precision!r}, allowed float32, bfloat16")
    return float(np.uint32(bits).view(np.float32))


def size_shift(*, height: float, width: float, num_frames: float, precision: str) -> float:
    """Returns the noise levels' shift, sqrt of pixels times sqrt of latent frames: larger clips stay longer at high noise.

    `height` and `width` in pixels, `num_frames` in pixel frames; every intermediate result is rounded to `precision`.
    Raises ValueError for 2 to 16 frames, for which the published formula gives no usable noise levels.
    """

    def rounded(value: float) -> float:
        return round_to(precision, value)

    num_frames = rounded(num_frames)
    latent_frames = 1.0 if num_frames == 1 else rounded(num_frames // 17 * 5)
    if latent_frames == 0:
        raise ValueError(f"num_frames={num_frames:g}, rectified flow needs 1 or at least 17 frames")
    pixels = rounded(rounded(height) * rounded(width))
    space = rounded(math.sqrt(rounded(pixels / 512**2)))
    return rounded(space * rounded(math.sqrt(latent_frames)))


def timesteps(num_steps: int, *, shift: float = 1.0, discrete: bool = False) -> tuple[float, ...]:
    """Returns the noise level (0..1000, float32 values) of each step: uniform, then shifted by `size_shift`'s ratio."""
    fractions = [1.0 - i / num_steps for i in range(num_steps)]
    levels = np.array([fraction * NUM_TRAIN_TIMESTEPS for fraction in fractions], dtype=np.float32)
    if discrete:
        levels = np.array([round(f * NUM_TRAIN_TIMESTEPS) for f in fractions], dtype=np.float32)
    unit = levels / np.float32(NUM_TRAIN_TIMESTEPS)
    ratio = np.float32(shift)
    if shift != 1.0:
        unit = ratio * unit / (np.float32(1) + (ratio - np.float32(1)) * unit)
        levels = unit * np.float32(NUM_TRAIN_TIMESTEPS)
    return tuple(float(level) for level in levels)


@dataclass(frozen=True, kw_only=True)
class RectifiedFlow:
    """Steps one clip from noise to data: z <- z + v * dt, with v the model's velocity (data minus noise).

    `frame_mask_BT`: 1 generates a frame, 0 keeps it, a value between them starts it from noise of that level (Open-Sora's
    edit ratio); None generates all frames. `noise(step)` gives the noise that is mixed into frames that begin at that step.
    Under sequence parallelism mask and noise cover this rank's frames only.
    """

    timesteps: tuple[float, ...]
    frame_mask_BT: Tensor | None = None
    noise: Callable[[int], Tensor] | None = None
    init_noise_sigma: float = field(default=1.0, init=False)

    def step_size(self, step: int) -> float:
        """Returns dt as a float32 value: by how much the noise level falls in this step, where 1 is from noise to data."""
        levels = np.array([*self.timesteps, 0.0], dtype=np.float32)
        return float((levels[step] - levels[step + 1]) / np.float32(NUM_TRAIN_TIMESTEPS))

    def active_frames(self, step: int) -> Tensor | None:
        """Returns [B, T] bool: frames that are being generated at this step; None when all are."""
        if self.frame_mask_BT is None:
            return None
        return self.frame_mask_BT * NUM_TRAIN_TIMESTEPS >= self.timesteps[step]

    def model_input(self, latents_BCTHW: Tensor, step: int) -> Tensor:
        """Returns the latents that the model gets: frames that begin at this step get their noise."""
        if self.frame_mask_BT is None:
            return latents_BCTHW
        assert self.noise is not None, "frame conditioning needs noise"
        active = self.active_frames(step)
        begun = self.frame_mask_BT == 1 if step == 0 else self.active_frames(step - 1)
        assert active is not None, "a frame mask is given"
        assert begun is not None, "a frame mask is given"
        begins = (active & ~begun)[:, None, :, None, None]
        noised = add_noise(latents_BCTHW, self.noise(step), self.timesteps[step])
        return noised.where(begins, latents_BCTHW)

    def advance(self, latents: Tensor, model_input: Tensor, velocity: Tensor, step: int) -> Tensor:
        """Returns the latents after this step, all [B, C, T, H, W]; frames that are not generated stay as they were."""
        moved = model_input + velocity * self.step_size(step)
        active = self.active_frames(step)
        return moved if active is None else moved.where(active[:, None, :, None, None], latents)


def add_noise(data: Tensor, noise: Tensor, timestep: float | Tensor) -> Tensor:
    """Mixes data and noise at a noise level 0..1000: a float, or a tensor that broadcasts against `data`."""
    clean = 1 - timestep / NUM_TRAIN_TIMESTEPS
    return clean * data + (1 - clean) * noise


def training_loss(velocity: Tensor, data: Tensor, noise: Tensor, frame_mask_BT: Tensor | None = None) -> Tensor:
    """Returns [B]: the squared error of the velocity against data minus noise, over the frames to be generated.

    All tensors [B, C, T, H, W]; the mask is 1 for frames that were noised.
    """
    error = (velocity - (data - noise)).square()
    if frame_mask_BT is None:
        return error.mean(dim=(1, 2, 3, 4))
    per_frame = error.mean(dim=(1, 3, 4))
    weights = frame_mask_BT.to(per_frame.dtype)
    return (per_frame * weights).sum(dim=1) / weights.sum(dim=1)
