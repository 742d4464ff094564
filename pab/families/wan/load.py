"""Loads Wan's models as the diffusers library lays them out."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pab.broadcast.state import COND, UNCOND
from pab.families.wan.config import MAX_TEXT_TOKENS, WanModel
from pab.families.wan.image import open_wan_image
from pab.families.wan.levels import FEW_STEPS, shifted_timesteps
from pab.families.wan.loras import wan_loras
from pab.families.wan.sites import wan_sites
from pab.families.wan.vae import wan_codec
from pab.family import ClipRequest, LoadRequest
from pab.library.image import token_timesteps
from pab.library.load import LibraryModel, load_library_model, t5_beside
from pab.library.parts import ClipLevels
from pab.library.video import DiffusersVideo
from pab.model import StepInput
from pab.weights.checkpoint import CheckpointError

_TRANSFORMER = {"_class_name": "WanTransformer3DModel", "patch_size": [1, 2, 2]}
SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "num_train_timesteps": 1000,
}


def load_wan(root: Path, request: LoadRequest, model: WanModel) -> DiffusersVideo:
    """Loads the whole model for inference. Raises CheckpointError naming files, keys and values."""
    parts = ("transformer",) if model.boundary is None else ("transformer", "transformer_2")
    return load_library_model(wan_library_model(model), root, request, experts=[root / part for part in parts])


def wan_library_model(model: WanModel) -> LibraryModel:
    """Returns what is loaded of one published model, and how."""

    def levels(num_steps: int, size: tuple[int, int, int]) -> ClipLevels:
        shift = model.shift(*size[1:])
        return ClipLevels(planned=shifted_timesteps(num_steps, shift), changes={"flow_shift": shift})

    return LibraryModel(
        transformer={
            **_TRANSFORMER,
            "in_channels": model.in_channels,
            "num_layers": model.num_layers,
            # The widths of an image's tokens are the files' own; a model without an image encoder has none.
            **({} if model.reads_image else {"image_dim": None, "added_kv_proj_dim": None}),
        },
        vae={"_class_name": "AutoencoderKLWan", "z_dim": model.latent_channels},
        scheduler=SCHEDULER,
        sites=wan_sites(model.num_layers),
        levels=levels,
        chosen=partial(_chosen, model),
        default_size=(model.num_frames, model.height, model.width),
        encode_text=partial(t5_beside, max_length=MAX_TEXT_TOKENS, architecture="UMT5"),
        # Words beyond the prompt count as zeros, which the transformer attends to.
        prepare_text=lambda text, dtype, device: (text.y_BLC * text.mask_BL[..., None]).to(device=device, dtype=dtype),
        denoiser=partial(WanDenoiser, boundary=model.boundary or 0.0, timed_tokens=model.timed_tokens),
        codec=wan_codec,
        guided_passes=(COND, UNCOND),
        vae_dtype=torch.float32,
        compute_buffers=add_positions,
        clean=clean_text,
        encode_image=None if model.references is None else partial(open_wan_image, model=model),
        loras=wan_loras(two_experts=model.boundary is not None),
    )


def _chosen(model: WanModel, clip: ClipRequest) -> ClipLevels | None:
    """Returns the levels of a clip that names a preset of few steps, another shift or a second guidance scale."""
    planned = model.timesteps(clip, "")
    if clip.sampling is not None:
        few = FEW_STEPS[clip.sampling]
        scheduler = "FlowMatchLCMScheduler" if few.renoises else "FlowMatchEulerDiscreteScheduler"
        return ClipLevels(
            planned=planned,
            given={"sigmas": list(few.levels)} | ({"timesteps": list(few.timesteps)} if few.renoises else {}),
            scheduler={"_class_name": scheduler, "num_train_timesteps": 1000, "shift": 1.0},
            noise_seed=clip.seed if few.renoises else None,
        )
    if clip.flow_shift is None and clip.guidance_scale_2 is None:
        return None
    second = clip.guidance_scale if clip.guidance_scale_2 is None else clip.guidance_scale_2
    return ClipLevels(
        planned=planned,
        changes={"flow_shift": model.shift(clip.height, clip.width) if clip.flow_shift is None else clip.flow_shift},
        guidance=tuple(clip.guidance_scale if t >= (model.boundary or 0.0) else second for t in planned),
    )


def add_positions(transformer: Any) -> None:
    """Makes the rotary positions real, which the transformer computes itself and no file holds."""
    config = transformer.config
    transformer.rope = type(transformer.rope)(config.attention_head_dim, config.patch_size, config.rope_max_seq_len)


@dataclass(frozen=True, slots=True, kw_only=True)
class WanDenoiser:
    """Runs the expert of a noise level. `boundary`: the timestep below which the second one takes over.

    `timed_tokens`: every token has a timestep, 0 in a given first frame; without one all are the same.
    """

    experts: tuple[Any, ...]
    boundary: float
    dtype: torch.dtype
    timed_tokens: bool = False

    def __call__(self, rows: Tensor, step_input: StepInput, text: Tensor) -> Tensor:
        """Returns the predicted velocity [rows, C, T, H, W] in the transformer's precision."""
        expert = self.experts[0] if step_input.timestep >= self.boundary else self.experts[1]
        timestep = torch.full((len(rows),), step_input.timestep, device=rows.device)
        if self.timed_tokens and step_input.active_frames is not None:
            timestep = token_timesteps(rows, step_input.timestep, step_input.active_frames, side=2)
        elif self.timed_tokens:
            frames, height, width = rows.shape[2:]
            timestep = timestep[:, None].expand(-1, frames * (height // 2) * (width // 2))
        image = step_input.image_states
        return expert(
            hidden_states=rows.to(self.dtype),
            timestep=timestep,
            encoder_hidden_states=text,
            encoder_hidden_states_image=None if image is None else image.to(self.dtype).expand(len(rows), -1, -1),
            return_dict=False,
        )[0]


def clean_text(text: str) -> str:
    """Returns a prompt as the published pipeline reads it: encoding repaired, HTML entities resolved, single spaces."""
    try:
        import ftfy
    except ImportError as error:
        raise CheckpointError("Wan's prompts need ftfy; pip install 'pab-pipeline[models]'") from error
    plain = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", plain).strip()
