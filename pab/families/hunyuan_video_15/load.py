"""Loads HunyuanVideo 1.5's text-to-video models as the diffusers library lays them out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pab.broadcast.state import COND, UNCOND
from pab.families.hunyuan_video_15.attention import Hunyuan15Attention
from pab.families.hunyuan_video_15.config import Hunyuan15Model
from pab.families.hunyuan_video_15.loras import HUNYUAN_VIDEO_15_LORAS
from pab.families.hunyuan_video_15.sites import hunyuan_video_15_sites
from pab.families.hunyuan_video_15.text import open_hunyuan_15_text
from pab.families.hunyuan_video_15.vae import LATENT_CHANNELS, hunyuan_15_codec
from pab.family import LoadRequest
from pab.library.attention import ROTARY_JOINT_PLAN
from pab.library.broadcast_module import LATENTS, TEXT
from pab.library.even_levels import even_levels, moved_timesteps
from pab.library.load import LibraryModel, load_library_model
from pab.library.parts import ClipLevels
from pab.library.video import DiffusersVideo
from pab.model import StepInput
from pab.text.states import TextStates

NUM_FRAMES = 121
IMAGE_CHANNELS = LATENT_CHANNELS + 1
"""Behind the latents the transformer takes a given image's, and which frames are given: none here."""
_TRANSFORMER = {
    "_class_name": "HunyuanVideo15Transformer3DModel",
    "in_channels": LATENT_CHANNELS + IMAGE_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "patch_size": 1,
    "patch_size_t": 1,
}
_VAE = {"_class_name": "AutoencoderKLHunyuanVideo15", "latent_channels": LATENT_CHANNELS}
Text = tuple[Tensor, Tensor, Tensor, Tensor]
"""States [rows, L, C] and mask [rows, L] of the prompt, then those of the text to be shown."""


def load_hunyuan_video_15(root: Path, request: LoadRequest, model: Hunyuan15Model) -> DiffusersVideo:
    """Loads the whole model for inference. Raises CheckpointError naming files, keys and values."""

    def levels(num_steps: int, _size: tuple[int, int, int]) -> ClipLevels:
        planned = moved_timesteps(num_steps, model.shift)
        return ClipLevels(planned=planned, given={"sigmas": list(even_levels(num_steps))})

    described = LibraryModel(
        transformer={**_TRANSFORMER, "num_layers": model.num_layers},
        vae=_VAE,
        scheduler={
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": 1000,
            "shift": model.shift,
        },
        sites=hunyuan_video_15_sites(model.num_layers),
        streams=(LATENTS, TEXT),
        attention=Hunyuan15Attention,
        plan=ROTARY_JOINT_PLAN,
        levels=levels,
        default_size=(NUM_FRAMES, model.height, model.width),
        encode_text=partial(open_hunyuan_15_text, model),
        prepare_text=_prepare_text,
        denoiser=Hunyuan15Denoiser,
        codec=hunyuan_15_codec,
        guided_passes=(COND, UNCOND),
        loras=HUNYUAN_VIDEO_15_LORAS,
    )
    return load_library_model(described, root, request)


def _prepare_text(text: TextStates, dtype: torch.dtype, device: torch.device) -> Text:
    assert text.second is not None, "Hunyuan15Text gives both encoders' states"
    parts = (text.y_BLC, text.mask_BL, text.second.y_BLC, text.second.mask_BL)
    states, mask, shown, shown_mask = (part.to(device=device, dtype=dtype) for part in parts)
    return states, mask, shown, shown_mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Hunyuan15Denoiser:
    """Runs the transformer, which is given no image."""

    experts: tuple[Any, ...]
    dtype: torch.dtype

    def __call__(self, rows: Tensor, step_input: StepInput, text: Text) -> Tensor:
        """Returns the predicted velocity [rows, C, T, H, W], float32."""
        states, mask, shown, shown_mask = text
        transformer = self.experts[0]
        no_image = rows.new_zeros(len(rows), IMAGE_CHANNELS, *rows.shape[2:])
        return transformer(
            hidden_states=torch.cat([rows, no_image], dim=1).to(self.dtype),
            timestep=torch.full((len(rows),), step_input.timestep, device=rows.device).to(self.dtype),
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            encoder_hidden_states_2=shown,
            encoder_attention_mask_2=shown_mask,
            # The library gives 729 zeros, which it masks: no token at all is the same.
            image_embeds=states.new_zeros(len(rows), 0, transformer.config.image_embed_dim),
            return_dict=False,
        )[0].float()
