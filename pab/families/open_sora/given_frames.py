"""Latent frames of a clip that references give: encoded once, put into the initial noise, masked at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pab.conditioning.frame_masks import FrameMask
from pab.conditioning.reference_noise import reference_generator
from pab.model import EncodedReference, Scheduler
from pab.parallel.mesh import SequenceParallel


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenFrames:
    """What references give to one clip, the same on all its ranks.

    `latents_BCTHW`: whole, zero where frames are generated; `mask` says where they are, and how far. `scheduler(sp)`
    returns the clip's scheduler with the mask, for a rank's part of the latents.
    """

    latents_BCTHW: Tensor
    mask: FrameMask
    scheduler: Callable[[SequenceParallel], Scheduler]
    image_states: Tensor | None = None

    def put_into(self, noise_BCTHW: Tensor) -> Tensor:
        """Returns whole latents to begin with: the given frames, noise in the others."""
        given = torch.tensor([source is not None for source in self.mask.sources], device=noise_BCTHW.device)
        return torch.where(given[None, None, :, None, None], self.latents_BCTHW.to(noise_BCTHW), noise_BCTHW)


def reference_noise(seed: int) -> Callable[[tuple[int, ...]], Tensor]:
    """Returns what draws the noise of a clip's encoded references: on the CPU, from the clip's seed, in order."""
    generator = reference_generator(seed)
    return lambda shape: torch.randn(shape, generator=generator)


def assemble(
    shape: Sequence[int],
    mask: FrameMask,
    encoded: Sequence[EncodedReference | None],
) -> Tensor:
    """Returns whole latents [1, C, T, H, W] float32, zero but for the mask's frames.

    `shape`: (C, T, H, W) of the clip. `encoded`: per reference its latents [1, C, t, H, W] and which of its latent frames
    is the first of them.
    """
    device = next(latents.device for latents, _ in filter(None, encoded))
    whole = torch.zeros(1, *shape, device=device)
    for place, source in enumerate(mask.sources):
        if source is not None:
            reference, frame = source
            held = encoded[reference]
            assert held is not None, f"the mask takes frames of reference {reference}"
            latents, first = held
            whole[:, :, place] = latents[:, :, frame - first]
    return whole
