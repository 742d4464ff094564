"""Loads CogVideoX's models as the diffusers library lays them out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pab.broadcast.state import BOTH
from pab.conditioning.reference_noise import reference_generator
from pab.conditioning.reference_pixels import ReferenceImage
from pab.families.cogvideox.attention import COGVIDEOX_PLAN, CogVideoXAttention
from pab.families.cogvideox.config import (
    DPM_DYNAMIC,
    DYNAMIC,
    HEIGHT,
    LATENT_CHANNELS,
    MAX_TEXT_TOKENS,
    NUM_FRAMES,
    WIDTH,
    CogVideoXModel,
    cogvideox_latent_frames,
)
from pab.families.cogvideox.levels import dynamic_guidance, trailing_timesteps
from pab.families.cogvideox.sites import cogvideox_sites
from pab.families.cogvideox.vae import cogvideox_codec
from pab.family import ClipRequest, LoadRequest
from pab.library.broadcast_module import LATENTS, TEXT
from pab.library.image import EncodeImage, ImageCondition, clip_pixels
from pab.library.load import LibraryModel, load_library_model, t5_beside
from pab.library.parts import ClipLevels, LibrarySampler
from pab.library.video import DiffusersVideo
from pab.model import StepInput

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
            "in_channels": model.in_channels,
            "use_rotary_positional_embeddings": model.rotary,
            **({"use_learned_positional_embeddings": True} if model.from_image else {}),
        },
        vae=_VAE,
        scheduler={**SCHEDULER, "snr_shift_scale": model.snr_shift},
        sites=cogvideox_sites(model.num_layers),
        streams=(LATENTS, TEXT),
        attention=CogVideoXAttention,
        plan=COGVIDEOX_PLAN,
        levels=lambda num_steps, _size: ClipLevels(planned=trailing_timesteps(num_steps)),
        chosen=_chosen,
        default_size=(NUM_FRAMES, HEIGHT, WIDTH),
        encode_text=partial(t5_beside, max_length=MAX_TEXT_TOKENS, reads_padding=True),
        prepare_text=lambda text, dtype, device: text.y_BLC.to(device=device, dtype=dtype),
        denoiser=lambda experts, dtype: CogVideoXDenoiser(
            experts=experts, rotation=rotations(experts[0]) if model.rotary else None, dtype=dtype
        ),
        codec=cogvideox_codec,
        guided_passes=(BOTH,),
        compute_buffers=_add_positions,
        encode_image=_open_image if model.from_image else None,
    )


@dataclass(kw_only=True)
class DpmSampler(LibrarySampler):
    """Drives the library's DPM solver, which looks back at the prediction of the step before and adds noise."""

    predicted: Tensor | None = None
    """The clip without noise, as the step before predicted it, frames before channels."""

    def advance(self, latents: Tensor, model_input: Tensor, prediction: Tensor, step: int) -> Tensor:
        """Returns the latents after the step. Noise is drawn with frames before channels, as the library draws it."""
        timesteps = self.scheduler.timesteps
        rows_BTCHW = latents.transpose(1, 2)
        result_BTCHW, self.predicted = self.scheduler.step(
            prediction.transpose(1, 2),
            self.predicted,
            timesteps[step],
            timesteps[step - 1] if step > 0 else None,
            rows_BTCHW,
            generator=self.noise_behind(rows_BTCHW),
            return_dict=False,
        )
        return result_BTCHW.transpose(1, 2)


def _chosen(clip: ClipRequest) -> ClipLevels | None:
    """Returns the levels of a clip that names a preset; they are the same, but for their solver and the guidance."""
    if clip.sampling is None:
        return None
    planned = trailing_timesteps(clip.num_steps)
    dynamic = clip.sampling in (DYNAMIC, DPM_DYNAMIC) and clip.guidance_scale != 1.0
    guidance = dynamic_guidance(clip.guidance_scale, clip.num_steps) if dynamic else ()
    if clip.sampling == DYNAMIC:
        return ClipLevels(planned=planned, guidance=guidance)
    return ClipLevels(
        planned=planned,
        changes={"_class_name": "CogVideoXDPMScheduler"},
        sampler=DpmSampler,
        guidance=guidance,
        noise_seed=clip.seed,
    )


def _add_positions(transformer: Any) -> None:
    patches = transformer.patch_embed
    if patches.use_positional_embeddings:
        patches.pos_embedding = patches._get_positional_embeddings(
            patches.sample_height, patches.sample_width, patches.sample_frames
        )


def _open_image(_root: Path, request: LoadRequest, vae: Any, dtype: torch.dtype) -> EncodeImage:
    device, scale = torch.device(request.device), vae.config.scaling_factor

    def encode(clip: ClipRequest, image: ReferenceImage) -> ImageCondition:
        pixels = clip_pixels(image, clip.height, clip.width, device).to(dtype)
        latents = vae.encode(pixels[:, :, None]).latent_dist.sample(reference_generator(clip.seed))
        scaled = 1 / scale * latents if vae.config.invert_scale_latents else scale * latents
        empty = latents.new_zeros(*latents.shape[:2], cogvideox_latent_frames(clip.num_frames) - 1, *latents.shape[3:])
        return ImageCondition(channels_BCTHW=torch.cat([scaled, empty], dim=2).float())

    return encode


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
