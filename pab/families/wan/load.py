"""Loads Wan's text-to-video models as the diffusers library lays them out."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pab.broadcast.state import COND, UNCOND
from pab.families.wan.config import MAX_TEXT_TOKENS, WanModel
from pab.families.wan.levels import shifted_timesteps
from pab.families.wan.sites import wan_sites
from pab.family import ClipRequest, LoadRequest
from pab.library.attention import SelfAttention
from pab.library.broadcast_module import CurrentPass, install_sites
from pab.library.parts import LibrarySampler, SchedulerSource, checked_config, load_part
from pab.library.sequence import library_plan, share_passes
from pab.library.vae import TiledCodec, open_codec
from pab.library.video import DiffusersVideo
from pab.model import Scheduler, StepInput
from pab.parallel.mesh import Axis
from pab.text.t5_text import T5Text
from pab.weights.checkpoint import CheckpointError, dtype_of

_TRANSFORMER = {"_class_name": "WanTransformer3DModel", "patch_size": [1, 2, 2]}
_SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "num_train_timesteps": 1000,
}

CHECKED_STEPS = 10
"""Of the scheduler that is compared with the planned levels when the model is loaded."""


def load_wan(root: Path, request: LoadRequest, model: WanModel) -> DiffusersVideo:
    """Loads the whole model for inference. Raises CheckpointError naming files, keys and values."""
    dtype, device = dtype_of(request.precision), torch.device(request.device)
    current = CurrentPass()
    experts = [load_transformer(root / "transformer", model, dtype=dtype, device=device)]
    if model.boundary is not None:
        experts.append(load_transformer(root / "transformer_2", model, dtype=dtype, device=device))
    sites, attention = wan_sites(model.num_layers), SelfAttention(current=current)
    for expert in experts:
        share_passes(expert, sites, plan=library_plan(type(expert)), attention=attention, current=current)
        install_sites(expert, sites, current)
    return DiffusersVideo(
        denoise=WanDenoiser(
            experts=tuple(experts),
            boundary=model.boundary or 0.0,
            dtype=dtype,
            device=device,
            timed_tokens=model.timed_tokens,
        ),
        current=current,
        encode_text=T5Text(
            folder=root / "text_encoder",
            tokenizer_folder=root / "tokenizer",
            dtype=dtype,
            device=device,
            max_length=MAX_TEXT_TOKENS,
            axis=request.clip_axis or Axis(),
            architecture="UMT5",
        ),
        # Words beyond the prompt count as zeros, which the transformer attends to.
        prepare_text=lambda text: (text.y_BLC * text.mask_BL[..., None]).to(device=device, dtype=dtype),
        codec=load_codec(root / "vae", device, model),
        sampler=WanSampler(
            model=model,
            source=SchedulerSource(
                folder=root / "scheduler",
                config=checked_config(root / "scheduler", _SCHEDULER, "scheduler_config.json"),
                device=device,
            ),
        ),
        guided_passes=(COND, UNCOND),
        clean=clean_text,
    )


def load_transformer(folder: Path, model: WanModel, *, dtype: torch.dtype, device: torch.device) -> Any:
    """Loads one transformer. Norms, modulation and the timestep's embedding stay in float32, as in the library."""

    def positions(module: Any) -> None:
        config = module.config
        module.rope = type(module.rope)(config.attention_head_dim, config.patch_size, config.rope_max_seq_len)

    needed = {
        **_TRANSFORMER,
        "in_channels": model.latent_channels,
        "num_layers": model.num_layers,
        "image_dim": None,
        "added_kv_proj_dim": None,
    }
    return load_part(folder, needed, dtype=dtype, device=device, compute_buffers=positions)


def load_codec(folder: Path, device: torch.device, model: WanModel) -> TiledCodec:
    """Loads the VAE, in float32 as published."""
    needed = {"_class_name": "AutoencoderKLWan", "z_dim": model.latent_channels}
    vae = load_part(folder, needed, dtype=torch.float32, device=device)
    patch = vae.config.patch_size or 1
    mean, std = (
        torch.tensor(values, device=device).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return open_codec(
        vae,
        strides=(vae.config.scale_factor_temporal, vae.config.scale_factor_spatial // patch),
        patch=patch,
        channels=vae.config.z_dim,
        unscale=lambda latents, _request: latents / (1.0 / std) + mean,
        decode=lambda _index, tile, _request: decode_tile(vae, tile),
    )


def decode_tile(vae: Any, tile_BCTHW: Tensor) -> Tensor:
    """Decodes latent frames one by one, each with what the ones before left in the VAE.

    As the library's own `decode` does, but for cutting off what is beyond the range of pixels, which comes after fading.
    """
    vae.clear_cache()
    latents = vae.post_quant_conv(tile_BCTHW)
    frames = []
    for at in range(latents.shape[2]):
        vae._conv_idx = [0]
        frame = latents[:, :, at : at + 1]
        frames.append(vae.decoder(frame, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=at == 0))
    vae.clear_cache()
    return torch.cat(frames, dim=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class WanDenoiser:
    """Runs the expert of a noise level. `boundary`: the timestep below which the second one takes over.

    `timed_tokens`: every token has a timestep; without given frames all are the same.
    """

    experts: tuple[Any, ...]
    boundary: float
    dtype: torch.dtype
    device: torch.device
    timed_tokens: bool = False

    def __call__(self, rows: Tensor, step_input: StepInput, text: Tensor) -> Tensor:
        """Returns the predicted velocity [rows, C, T, H, W] in the transformer's precision."""
        expert = self.experts[0] if step_input.timestep >= self.boundary else self.experts[1]
        timestep = torch.full((len(rows),), int(step_input.timestep), device=self.device)
        if self.timed_tokens:
            frames, height, width = rows.shape[2:]
            timestep = timestep.float()[:, None].expand(-1, frames * (height // 2) * (width // 2))
        return expert(
            hidden_states=rows.to(self.dtype), timestep=timestep, encoder_hidden_states=text, return_dict=False
        )[0]


@dataclass(frozen=True, kw_only=True)
class WanSampler:
    """Makes each clip's UniPC scheduler, shifted as the clip's size wants it. Fails at once where the levels differ."""

    model: WanModel
    source: SchedulerSource

    def __post_init__(self) -> None:
        shift = self.model.shifts[0]
        self.source.open(CHECKED_STEPS, shifted_timesteps(CHECKED_STEPS, shift), flow_shift=shift)

    def __call__(self, request: ClipRequest) -> Scheduler:
        """Returns the clip's sampler."""
        planned = self.model.timesteps(request, "float32")
        scheduler = self.source.open(request.num_steps, planned, flow_shift=self.model.shift(request))
        return LibrarySampler(scheduler=scheduler, timesteps=planned)


def clean_text(text: str) -> str:
    """Returns a prompt as the published pipeline reads it: encoding repaired, HTML entities resolved, single spaces."""
    try:
        import ftfy
    except ImportError as error:
        raise CheckpointError("Wan's prompts need ftfy; install the extra 'models'") from error
    plain = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", plain).strip()
