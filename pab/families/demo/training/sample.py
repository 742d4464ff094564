"""Renders prompts with the demo model in one plain loop: what training watches and the check uses by default."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pab.families.demo.frame_position import frame_positions, with_frame_positions
from pab.families.demo.training.generator import ClipSize
from pab.families.demo.weights import DemoParts
from pab.families.open_sora.stdit3 import ClipShape
from pab.sampling.rectified_flow import RectifiedFlow, timesteps

FPS = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSettings:
    """How prompts are rendered."""

    size: ClipSize
    num_steps: int = 30
    guidance_scale: float = 4.0
    shift: float = 1.0


@torch.inference_mode()
def render_prompts(parts: DemoParts, prompts: Sequence[str], *, seed: int, settings: SampleSettings) -> Tensor:
    """Renders one clip per prompt. Returns [B, 3, T, H, W] in -1..1, float32, on the parts' device."""
    size = settings.size
    shape = parts.autoencoder.latent_shape(size.num_frames, size.height, size.width)
    noise = torch.randn(len(prompts), *shape, generator=torch.Generator().manual_seed(seed))
    dtype = parts.transformer.final_layer.linear.weight.dtype
    encoded = parts.text_encoder.encode(prompts)
    null = parts.transformer.y_embedder.y_embedding.to(encoded.y).expand(len(prompts), -1, -1)
    text = parts.transformer.prepare_text(torch.cat([encoded.y[:, 0], null]))
    clip = ClipShape(height=size.height, width=size.width, fps=torch.tensor([FPS]), num_latent_frames=shape[1])
    flow = RectifiedFlow(timesteps=timesteps(settings.num_steps, shift=settings.shift))
    latents = noise.to(parts.device)
    positions = frame_positions(shape[1], parts.device)
    for step, timestep in enumerate(flow.timesteps):
        rows = with_frame_positions(torch.cat([latents, latents]), positions)
        velocity = parts.transformer.denoise(rows, timestep, text, clip=clip)
        conditional, unconditional = velocity[:, : latents.shape[1]].chunk(2)
        guided = unconditional + settings.guidance_scale * (conditional - unconditional)
        latents = flow.advance(latents, latents, guided, step)
    return parts.autoencoder.decode(latents.to(dtype)).float()
