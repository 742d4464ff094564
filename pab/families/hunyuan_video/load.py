"""Loads HunyuanVideo's text-to-video models as the diffusers library lays them out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pab.broadcast.state import COND, UNCOND
from pab.families.hunyuan_video.attention import HUNYUAN_VIDEO_PLAN, HunyuanAttention
from pab.families.hunyuan_video.config import HunyuanModel
from pab.families.hunyuan_video.levels import SHIFT, even_levels, moved_timesteps
from pab.families.hunyuan_video.sites import hunyuan_video_sites
from pab.families.hunyuan_video.text import HunyuanText
from pab.family import LoadRequest
from pab.library.broadcast_module import CurrentPass, install_sites
from pab.library.parts import LibrarySampler, SchedulerSource, checked_config, load_part
from pab.library.sequence import share_passes
from pab.library.vae import TiledCodec, open_codec
from pab.library.video import DiffusersVideo
from pab.model import Scheduler, StepInput
from pab.parallel.mesh import Axis
from pab.text.states import TextStates
from pab.weights.checkpoint import dtype_of

LATENT_CHANNELS = 16
_TRANSFORMER = {
    "_class_name": "HunyuanVideoTransformer3DModel",
    "in_channels": LATENT_CHANNELS,
    "patch_size": 2,
    "patch_size_t": 1,
}
_VAE = {"_class_name": "AutoencoderKLHunyuanVideo", "latent_channels": LATENT_CHANNELS}
_SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": SHIFT}

CHECKED_STEPS = 10
"""Of the scheduler that is compared with the planned levels when the model is loaded."""
Text = tuple[Tensor, Tensor, Tensor]
"""States [rows, L, C], mask [rows, L] and CLIP's vector [rows, D], in the transformer's precision."""


def load_hunyuan_video(transformer: Path, root: Path, request: LoadRequest, model: HunyuanModel) -> DiffusersVideo:
    """Loads the whole model for inference: its transformer's folder, and the folder of all else.

    Raises CheckpointError naming files, keys and values.
    """
    dtype, device = dtype_of(request.precision), torch.device(request.device)
    current = CurrentPass()
    module = load_transformer(transformer, model, dtype=dtype, device=device)
    sites = hunyuan_video_sites(model.num_layers, model.num_single_layers)
    attention = HunyuanAttention(current=current)
    share_passes(module, sites, plan=HUNYUAN_VIDEO_PLAN, attention=attention, current=current)
    install_sites(module, sites, current)
    source = SchedulerSource(
        folder=root / "scheduler",
        config=checked_config(root / "scheduler", _SCHEDULER, "scheduler_config.json"),
        device=device,
    )
    open_sampler(source, CHECKED_STEPS)

    def prepare_text(text: TextStates) -> Text:
        assert text.pooled_BD is not None, "HunyuanText gives CLIP's vector"
        states, mask, pooled = (
            part.to(device=device, dtype=dtype) for part in (text.y_BLC, text.mask_BL, text.pooled_BD)
        )
        return states, mask, pooled

    return DiffusersVideo(
        denoise=HunyuanDenoiser(experts=(module,), told_guidance=model.told_guidance, dtype=dtype),
        current=current,
        encode_text=HunyuanText(root=root, dtype=dtype, device=device, axis=request.clip_axis or Axis()),
        prepare_text=prepare_text,
        codec=load_codec(root / "vae", device),
        sampler=lambda clip: open_sampler(source, clip.num_steps),
        guided_passes=(COND,) if model.told_guidance is None else (COND, UNCOND),
    )


def open_sampler(source: SchedulerSource, num_steps: int) -> Scheduler:
    """Returns a clip's sampler."""
    planned = moved_timesteps(num_steps)
    scheduler = source.open(num_steps, planned, levels={"sigmas": list(even_levels(num_steps))})
    return LibrarySampler(scheduler=scheduler, timesteps=planned)


def load_transformer(folder: Path, model: HunyuanModel, *, dtype: torch.dtype, device: torch.device) -> Any:
    """Loads the transformer. If it is to take the clip's guidance scale, its configuration must have that input."""
    needed: dict[str, object] = {
        **_TRANSFORMER,
        "num_layers": model.num_layers,
        "num_single_layers": model.num_single_layers,
    }
    if model.told_guidance is None:
        needed["guidance_embeds"] = True
    return load_part(folder, needed, dtype=dtype, device=device)


def load_codec(folder: Path, device: torch.device) -> TiledCodec:
    """Loads the VAE, in float32."""
    vae = load_part(folder, _VAE, dtype=torch.float32, device=device)
    return open_codec(
        vae,
        strides=(vae.temporal_compression_ratio, vae.spatial_compression_ratio),
        channels=LATENT_CHANNELS,
        unscale=lambda latents, _request: latents / vae.config.scaling_factor,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HunyuanDenoiser:
    """Runs the transformer, which takes a guidance scale at every step: `told_guidance`, or the clip's own."""

    experts: tuple[Any, ...]
    told_guidance: float | None
    dtype: torch.dtype

    def __call__(self, rows: Tensor, step_input: StepInput, text: Text) -> Tensor:
        """Returns the predicted velocity [rows, C, T, H, W], float32."""
        states, mask, pooled = text
        told = step_input.request.guidance_scale if self.told_guidance is None else self.told_guidance
        return self.experts[0](
            hidden_states=rows.to(self.dtype),
            timestep=torch.full((len(rows),), step_input.timestep, device=rows.device),
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            pooled_projections=pooled,
            guidance=torch.full((len(rows),), told, dtype=self.dtype, device=rows.device) * 1000.0,
            return_dict=False,
        )[0].float()
