"""Loads CogVideoX's text-to-video models as the diffusers library lays them out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pab.broadcast.state import BOTH
from pab.families.cogvideox.attention import COGVIDEOX_PLAN, CogVideoXAttention
from pab.families.cogvideox.config import MAX_TEXT_TOKENS, CogVideoXModel
from pab.families.cogvideox.levels import trailing_timesteps
from pab.families.cogvideox.sites import cogvideox_sites
from pab.family import ClipRequest, LoadRequest
from pab.library.broadcast_module import CurrentPass, install_sites
from pab.library.parts import LibrarySampler, SchedulerSource, checked_config, load_part
from pab.library.sequence import share_passes
from pab.library.vae import TiledCodec, open_codec
from pab.library.video import DiffusersVideo
from pab.model import Scheduler, StepInput
from pab.parallel.mesh import Axis
from pab.text.t5_text import T5Text
from pab.weights.checkpoint import dtype_of

CHECKED_STEPS = 10
"""Of the scheduler that is compared with the planned levels when the model is loaded."""
LATENT_CHANNELS = 16
_VAE = {"_class_name": "AutoencoderKLCogVideoX", "latent_channels": LATENT_CHANNELS}
_SCHEDULER = {
    "_class_name": "CogVideoXDDIMScheduler",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
    "num_train_timesteps": 1000,
}
Rotation = tuple[Tensor, Tensor]


def load_cogvideox(root: Path, request: LoadRequest, model: CogVideoXModel) -> DiffusersVideo:
    """Loads the whole model for inference. Raises CheckpointError naming files, keys and values."""
    dtype, device = dtype_of(request.precision), torch.device(request.device)
    current = CurrentPass()
    transformer = load_transformer(root / "transformer", model, dtype=dtype, device=device)
    sites, attention = cogvideox_sites(model.num_layers), CogVideoXAttention(current=current)
    share_passes(transformer, sites, plan=COGVIDEOX_PLAN, attention=attention, current=current)
    install_sites(transformer, sites, current)
    scheduler = SchedulerSource(
        folder=root / "scheduler",
        config=checked_config(
            root / "scheduler", {**_SCHEDULER, "snr_shift_scale": model.snr_shift}, "scheduler_config.json"
        ),
        device=device,
    )
    scheduler.open(CHECKED_STEPS, trailing_timesteps(CHECKED_STEPS))
    return DiffusersVideo(
        denoise=CogVideoXDenoiser(
            experts=(transformer,), rotation=rotations(transformer, device) if model.rotary else None, dtype=dtype
        ),
        current=current,
        encode_text=T5Text(
            folder=root / "text_encoder",
            tokenizer_folder=root / "tokenizer",
            dtype=dtype,
            device=device,
            max_length=MAX_TEXT_TOKENS,
            axis=request.clip_axis or Axis(),
            reads_padding=True,
        ),
        prepare_text=lambda text: text.y_BLC.to(device=device, dtype=dtype),
        codec=load_codec(root / "vae", dtype, device),
        sampler=lambda clip: open_sampler(scheduler, clip),
        guided_passes=(BOTH,),
    )


def open_sampler(source: SchedulerSource, request: ClipRequest) -> Scheduler:
    """Returns the clip's DDIM scheduler."""
    planned = trailing_timesteps(request.num_steps)
    return LibrarySampler(scheduler=source.open(request.num_steps, planned), timesteps=planned)


def load_transformer(folder: Path, model: CogVideoXModel, *, dtype: torch.dtype, device: torch.device) -> Any:
    """Loads the transformer; positions that are added are computed here, as no file holds them."""

    def positions(module: Any) -> None:
        patches = module.patch_embed
        if patches.use_positional_embeddings:
            patches.pos_embedding = patches._get_positional_embeddings(
                patches.sample_height, patches.sample_width, patches.sample_frames
            )

    needed = {
        "_class_name": "CogVideoXTransformer3DModel",
        "num_layers": model.num_layers,
        "in_channels": LATENT_CHANNELS,
        "use_rotary_positional_embeddings": model.rotary,
    }
    return load_part(folder, needed, dtype=dtype, device=device, compute_buffers=positions)


def load_codec(folder: Path, dtype: torch.dtype, device: torch.device) -> TiledCodec:
    """Loads the VAE, in the transformer's precision as published."""
    vae = load_part(folder, _VAE, dtype=dtype, device=device)
    return open_codec(
        vae,
        strides=(vae.config.temporal_compression_ratio, 2 ** (len(vae.config.block_out_channels) - 1)),
        channels=LATENT_CHANNELS,
        unscale=lambda latents, _request: 1 / vae.config.scaling_factor * latents.to(dtype),
    )


def rotations(transformer: Any, device: torch.device) -> Callable[[int, int, int], Rotation]:
    """Returns a function from latent frames, height and width to cosines and sines of every token's position.

    A clip of another size than the transformer's own sees the same range of positions, more or less densely.
    """
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    config = transformer.config
    own_width, own_height = config.sample_width // config.patch_size, config.sample_height // config.patch_size

    @lru_cache(maxsize=4)
    def rotation(frames: int, height: int, width: int) -> Rotation:
        grid = height // config.patch_size, width // config.patch_size
        return get_3d_rotary_pos_embed(
            embed_dim=config.attention_head_dim,
            crops_coords=get_resize_crop_region_for_grid(grid, own_width, own_height),
            grid_size=grid,
            temporal_size=frames,
            device=device,
        )

    return rotation


@dataclass(frozen=True, slots=True, kw_only=True)
class CogVideoXDenoiser:
    """Runs the transformer, which wants frames before channels. `rotation`: positions of a latent size, if they rotate."""

    experts: tuple[Any, ...]
    rotation: Callable[[int, int, int], Rotation] | None
    dtype: torch.dtype

    def __call__(self, rows: Tensor, step_input: StepInput, text: Tensor) -> Tensor:
        """Returns the predicted velocity [rows, C, T, H, W], float32."""
        timestep = torch.full((len(rows),), int(step_input.timestep), device=rows.device)
        output_BTCHW = self.experts[0](
            hidden_states=rows.to(self.dtype).transpose(1, 2),
            encoder_hidden_states=text,
            timestep=timestep,
            image_rotary_emb=None if self.rotation is None else self.rotation(*rows.shape[2:]),
            return_dict=False,
        )[0]
        return output_BTCHW.float().transpose(1, 2)
