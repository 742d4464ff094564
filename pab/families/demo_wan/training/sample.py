"""Renders prompts with demo_wan in one plain loop, many at once: what training watches and the check uses."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pab.families.demo.autoencoder import Autoencoder
from pab.families.demo.text import TextEncoder
from pab.families.demo.training.generator import ClipSize
from pab.families.demo_wan.config import FLOW_SHIFT
from pab.families.wan.levels import shifted_timesteps
from pab.families.wan.load import SCHEDULER
from pab.library.parts import ClipLevels, SchedulerSource


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSettings:
    """How prompts are rendered."""

    size: ClipSize
    num_steps: int = 30
    guidance_scale: float = 4.0
    shift: float = FLOW_SHIFT


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledParts:
    """What renders: the library's transformer, and the demo's text encoder and autoencoder, on one device."""

    transformer: Any
    text_encoder: TextEncoder
    autoencoder: Autoencoder


@torch.inference_mode()
def render_prompts(parts: SampledParts, prompts: Sequence[str], *, seed: int, settings: SampleSettings) -> Tensor:
    """Renders one clip per prompt. Returns [B, 3, T, H, W] in -1..1, float32, on the parts' device."""
    size = settings.size
    shape = parts.autoencoder.latent_shape(size.num_frames, size.height, size.width)
    latents = torch.randn(len(prompts), *shape, generator=torch.Generator().manual_seed(seed))
    states = parts.text_encoder.encode([*prompts, ""]).y[:, 0]
    latents = latents.to(states.device)
    text_BLC = torch.cat([states[:-1], states[-1:].expand(len(prompts), -1, -1)])
    levels = shifted_timesteps(settings.num_steps, settings.shift)
    source = SchedulerSource(folder=Path(), config=SCHEDULER, device=states.device)
    sampler = source.sampler(ClipLevels(planned=levels, changes={"flow_shift": settings.shift}))
    for step, level in enumerate(levels):
        timestep_B = torch.full((2 * len(prompts),), level, device=states.device)
        rows = torch.cat([latents, latents])
        cond, uncond = parts.transformer(rows, timestep_B, text_BLC, return_dict=False)[0].chunk(2)
        latents = sampler.advance(latents, latents, uncond + settings.guidance_scale * (cond - uncond), step)
    return parts.autoencoder.decode(latents).float()
