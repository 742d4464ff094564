"""Loads CogVideoX's text-to-video models as the diffusers library lays them out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pab.broadcast.state import BOTH
from pab.families.cogvideox.attention import COGVIDEOX_PLAN, CogVideoXAttention
from pab.families.cogvideox.config import HEIGHT, MAX_TEXT_TOKENS, NUM_FRAMES, WIDTH, CogVideoXModel
from pab.families.cogvideox.levels import trailing_timesteps
from pab.families.cogvideox.sites import cogvideox_sites
from pab.family import LoadRequest
from pab.library.load import LibraryModel, load_library_model, t5_beside
from pab.library.parts import ClipLevels
from pab.library.vae import TiledCodec, open_codec
from pab.library.video import DiffusersVideo
from pab.model import StepInput

LATENT_CHANNELS = 16
_VAE = {"_class_name": "AutoencoderKLCogVideoX", "latent_channels": LATENT_CHANNELS}
SCHEDULER = {
    "_class_name": "CogVideoXDDIMScheduler",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
    "num_train_timesteps": 1000,
}
Rotation = tuple[Tensor, Tensor]


def load_cogvideox(root: Path, request: LoadRequest, model: CogVideoXModel) -> DiffusersVideo:
    """Loads the whole model for inference. Raises CheckpointError naming files, keys and values."""
    return load_library_model(cogvideox_library_model(model), root, request)


def cogvideox_library_model(model: CogVideoXModel) -> LibraryModel:
    """Returns what is loaded of one published model, and how."""
    return LibraryModel(
        transformer={
            "_class_name": "CogVideoXTransformer3DModel",
            "num_layers": model.num_layers,
            "in_channels": LATENT_CHANNELS,
            "use_rotary_positional_embeddings": model.rotary,
        },
        vae=_VAE,
        scheduler={**SCHEDULER, "snr_shift_scale": model.snr_shift},
        sites=cogvideox_sites(model.num_layers),
        attention=CogVideoXAttention,
        plan=COGVIDEOX_PLAN,
        levels=lambda num_steps, _size: ClipLevels(planned=trailing_timesteps(num_steps)),
        default_size=(NUM_FRAMES, HEIGHT, WIDTH),
        encode_text=partial(t5_beside, max_length=MAX_TEXT_TOKENS, reads_padding=True),
        prepare_text=lambda text, dtype, device: text.y_BLC.to(device=device, dtype=dtype),
        denoiser=lambda experts, dtype: CogVideoXDenoiser(
            experts=experts, rotation=rotations(experts[0]) if model.rotary else None, dtype=dtype
        ),
        codec=_codec,
        guided_passes=(BOTH,),
        compute_buffers=_add_positions,
    )


def _add_positions(transformer: Any) -> None:
    patches = transformer.patch_embed
    if patches.use_positional_embeddings:
        patches.pos_embedding = patches._get_positional_embeddings(
            patches.sample_height, patches.sample_width, patches.sample_frames
        )


def _codec(vae: Any, dtype: torch.dtype) -> TiledCodec:
    return open_codec(
        vae,
        strides=(vae.config.temporal_compression_ratio, 2 ** (len(vae.config.block_out_channels) - 1)),
        channels=LATENT_CHANNELS,
        unscale=lambda latents, _request: 1 / vae.config.scaling_factor * latents.to(dtype),
    )


def rotations(transformer: Any) -> Callable[[int, int, int], Rotation]:
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
            device=transformer.device,
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
