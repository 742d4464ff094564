"""Loads HunyuanVideo's models as the diffusers library lays them out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from pab.broadcast.state import COND, UNCOND
from pab.families.hunyuan_video.attention import HunyuanAttention, token_replace_plan
from pab.families.hunyuan_video.config import SHIFT, TOKEN_REPLACE, HunyuanModel
from pab.families.hunyuan_video.image import open_hunyuan_image
from pab.families.hunyuan_video.image_text import open_hunyuan_image_text
from pab.families.hunyuan_video.lead import WithoutLead
from pab.families.hunyuan_video.loras import HUNYUAN_VIDEO_LORAS
from pab.families.hunyuan_video.sites import hunyuan_video_sites
from pab.families.hunyuan_video.text import open_hunyuan_text
from pab.families.hunyuan_video.vae import LATENT_CHANNELS, hunyuan_codec
from pab.family import ClipRequest, LoadRequest
from pab.library.attention import ROTARY_JOINT_PLAN
from pab.library.broadcast_module import LATENTS, TEXT
from pab.library.even_levels import even_levels, moved_timesteps
from pab.library.load import LibraryModel, load_library_model
from pab.library.parts import ClipLevels
from pab.library.vae import TiledCodec
from pab.library.video import DiffusersVideo
from pab.model import StepInput
from pab.text.states import TextStates

_TRANSFORMER = {
    "_class_name": "HunyuanVideoTransformer3DModel",
    "out_channels": LATENT_CHANNELS,
    "patch_size": 2,
    "patch_size_t": 1,
}
_VAE = {"_class_name": "AutoencoderKLHunyuanVideo", "latent_channels": LATENT_CHANNELS}
_SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": SHIFT}
Text = tuple[Tensor, Tensor, Tensor]
"""States [rows, L, C], mask [rows, L] and CLIP's vector [rows, D], in the transformer's precision."""


def load_hunyuan_video(transformer: Path, root: Path, request: LoadRequest, model: HunyuanModel) -> DiffusersVideo:
    """Loads the whole model for inference: its transformer's folder, and the folder of all else.

    Raises CheckpointError naming files, keys and values.
    """
    loaded = load_library_model(hunyuan_library_model(model), root, request, experts=[transformer])
    if not model.lead_frames:
        return loaded
    return replace(loaded, codec=WithoutLead(codec=cast(TiledCodec, loaded.codec), lead_frames=model.lead_frames))


def hunyuan_library_model(model: HunyuanModel) -> LibraryModel:
    """Returns what is loaded of one published model, and how."""
    image, sites = model.image, hunyuan_video_sites(model.num_layers, model.num_single_layers)
    needed = {
        **_TRANSFORMER,
        "in_channels": LATENT_CHANNELS + (0 if image is None else image.channels),
        "num_layers": model.num_layers,
        "num_single_layers": model.num_single_layers,
        "image_condition_type": None if image is None else image.name,
    }
    return LibraryModel(
        # Where it is to be told the clip's guidance, it must have been made to hear it.
        transformer=needed | ({"guidance_embeds": True} if model.told_guidance is None else {}),
        vae=_VAE,
        scheduler=_SCHEDULER,
        sites=sites,
        streams=(LATENTS, TEXT),
        attention=HunyuanAttention,
        plan=token_replace_plan(sites) if image == TOKEN_REPLACE else ROTARY_JOINT_PLAN,
        levels=_levels,
        chosen=_chosen,
        default_size=(model.num_frames, model.height, model.width),
        encode_text=open_hunyuan_text if image is None else partial(open_hunyuan_image_text, image),
        encode_image=None
        if image is None
        else partial(open_hunyuan_image, image, two_branches=model.told_guidance is not None),
        prepare_text=_prepare_text,
        denoiser=partial(HunyuanDenoiser, told_guidance=model.told_guidance),
        codec=hunyuan_codec,
        guided_passes=(COND,) if model.told_guidance is None else (COND, UNCOND),
        vae_dtype=torch.float32,
        loras=HUNYUAN_VIDEO_LORAS,
    )


def _levels(num_steps: int, _size: tuple[int, int, int]) -> ClipLevels:
    return ClipLevels(planned=moved_timesteps(num_steps, SHIFT), given={"sigmas": list(even_levels(num_steps))})


def _chosen(clip: ClipRequest) -> ClipLevels | None:
    """Returns the levels of a clip with a shift of its own."""
    if clip.flow_shift is None:
        return None
    given = {"sigmas": list(even_levels(clip.num_steps))}
    planned = moved_timesteps(clip.num_steps, clip.flow_shift)
    return ClipLevels(planned=planned, given=given, changes={"shift": clip.flow_shift})


def _prepare_text(text: TextStates, dtype: torch.dtype, device: torch.device) -> Text:
    assert text.pooled_BD is not None, "text is read with CLIP's vector, and with the image where there is one"
    states, mask, pooled = (part.to(device=device, dtype=dtype) for part in (text.y_BLC, text.mask_BL, text.pooled_BD))
    return states, mask, pooled


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
