"""Loads LTX-Video's models as the diffusers library lays them out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pab.broadcast.state import BOTH
from pab.conditioning.reference_noise import reference_generator
from pab.conditioning.reference_pixels import ReferenceImage
from pab.families.ltx.conditions import ConditionDenoiser, NegatedSampler
from pab.families.ltx.config import FRAME_STRIDE, HEIGHT, NUM_FRAMES, PIXEL_STRIDE, WIDTH, LtxModel, ltx_tokens
from pab.families.ltx.levels import PRESET_LEVELS, given_levels, preset_timesteps
from pab.families.ltx.loras import LTX_LORAS
from pab.families.ltx.sites import ltx_sites
from pab.family import ClipRequest, LoadRequest
from pab.library.fast_decode import MOST_LATENTS, FastDecoder, decoder_dtype, use_half
from pab.library.image import EncodeImage, ImageCondition, clip_pixels, token_timesteps
from pab.library.load import LibraryModel, load_library_model, t5_beside
from pab.library.parts import ClipLevels, LibrarySampler
from pab.library.sequence_hooks import Split
from pab.library.stretched_levels import SCHEDULER, even_levels, log_shift
from pab.library.vae import TiledCodec, open_codec
from pab.library.video import DiffusersVideo
from pab.model import StepInput

LATENT_CHANNELS = 128
_TRANSFORMER = {
    "_class_name": "LTXVideoTransformer3DModel",
    "in_channels": LATENT_CHANNELS,
    "patch_size": 1,
    "patch_size_t": 1,
}
_VAE = {"_class_name": "AutoencoderKLLTXVideo", "latent_channels": LATENT_CHANNELS}
_CONDITION_SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "use_dynamic_shifting": False,
}

LATENT_BYTES = 1.0e6
"""Held for each latent while a tile is decoded in 16 bits: counted, 128 channels of 8 x 8 x 8 places, eight times."""
DECODE_TIMESTEP, DECODE_NOISE = 0.05, 0.025
"""A VAE that knows the timestep takes the last noise away itself: its timestep, and the share of noise put in before."""
Text = tuple[Tensor, Tensor]
"""States [rows, L, C] and mask [rows, L]."""


def load_ltx(root: Path, request: LoadRequest, model: LtxModel) -> DiffusersVideo:
    """Loads the whole model for inference. Raises CheckpointError naming files, keys and values."""
    return load_library_model(ltx_library_model(model), root, request)


def ltx_library_model(model: LtxModel) -> LibraryModel:
    """Returns what is loaded of one published model, and how."""
    return LibraryModel(
        transformer={**_TRANSFORMER, "num_layers": model.num_layers},
        vae=_VAE,
        scheduler=_CONDITION_SCHEDULER if model.takes_conditions else SCHEDULER,
        sampler=NegatedSampler if model.takes_conditions else LibrarySampler,
        sites=ltx_sites(model.num_layers),
        levels=partial(_levels, model),
        chosen=_chosen,
        default_size=(NUM_FRAMES, HEIGHT, WIDTH),
        encode_text=partial(t5_beside, max_length=model.max_text_tokens, reads_padding=not model.takes_conditions),
        prepare_text=lambda text, dtype, device: (text.y_BLC.to(device=device, dtype=dtype), text.mask_BL.to(device)),
        denoiser=ConditionDenoiser if model.takes_conditions else LtxDenoiser,
        codec=ltx_codec,
        guided_passes=(BOTH,),
        loras=LTX_LORAS,
        encode_image=None if model.takes_conditions else _open_image,
        # A clip that begins with an image has a timestep for every token.
        splits={} if model.takes_conditions else {"timestep": Split(dim=1, num_dims=2)},
    )


def _levels(model: LtxModel, num_steps: int, size: tuple[int, int, int]) -> ClipLevels:
    planned = model.timesteps(num_steps, size)
    if model.takes_conditions:
        return ClipLevels(planned=planned, given={"sigmas": given_levels(planned), "timesteps": list(planned)})
    mu = log_shift(ltx_tokens(*size))
    return ClipLevels(planned=planned, given={"sigmas": list(even_levels(num_steps)), "mu": mu})


def _chosen(clip: ClipRequest) -> ClipLevels | None:
    """Returns the levels of a clip of distilled weights."""
    if clip.sampling is None:
        return None
    scheduler = {"_class_name": SCHEDULER["_class_name"], "num_train_timesteps": 1000, "shift": 1.0}
    return ClipLevels(planned=preset_timesteps(), given={"sigmas": list(PRESET_LEVELS)}, scheduler=scheduler)


@dataclass(frozen=True, slots=True, kw_only=True)
class LtxDenoiser:
    """Runs the transformer, which wants tokens in a row and the seconds and pixels between them."""

    experts: tuple[Any, ...]
    dtype: torch.dtype

    def __call__(self, rows: Tensor, step_input: StepInput, text: Text) -> Tensor:
        """Returns the predicted velocity [rows, C, T, H, W], float32."""
        states, mask = text
        active = step_input.active_frames
        if active is None:
            timestep = torch.full((len(rows),), step_input.timestep, device=rows.device)
        else:
            timestep = token_timesteps(rows, step_input.timestep, active, side=1)
        output_BSC = self.experts[0](
            hidden_states=rows.to(self.dtype).flatten(2).transpose(1, 2).contiguous(),
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            timestep=timestep,
            num_frames=rows.shape[2],
            height=rows.shape[3],
            width=rows.shape[4],
            rope_interpolation_scale=(FRAME_STRIDE / step_input.request.fps, PIXEL_STRIDE, PIXEL_STRIDE),
            return_dict=False,
        )[0]
        return output_BSC.float().transpose(1, 2).unflatten(2, rows.shape[2:])


def ltx_codec(vae: Any, dtype: torch.dtype) -> TiledCodec:
    """Returns the decoder, whose configuration says whether it knows the timestep."""
    device = vae.device
    mean, std = (values.float().view(1, -1, 1, 1, 1) for values in (vae.latents_mean, vae.latents_std))
    conditioned = vae.config.timestep_conditioning

    def unscale(latents: Tensor, request: ClipRequest) -> Tensor:
        latents = (latents * std / vae.config.scaling_factor + mean).to(dtype)
        if not conditioned:
            return latents
        share = torch.tensor([DECODE_NOISE], dtype=dtype).to(device)
        return (1 - share) * latents + share * decode_noise(request, latents.shape).to(device=device, dtype=dtype)

    def decode(index: int, tile: Tensor, request: ClipRequest) -> Tensor:
        own = decoder_dtype(vae)
        timestep = torch.tensor([DECODE_TIMESTEP], dtype=own).to(device)
        # A seed for each tile: whichever rank decodes it draws the same.
        with library_seed((request.seed + index) % 2**63, device):
            pixels: Tensor = vae.decode(tile.to(own), timestep, return_dict=False)[0]
        return pixels

    return open_codec(
        vae,
        strides=(vae.temporal_compression_ratio, vae.spatial_compression_ratio),
        channels=LATENT_CHANNELS,
        unscale=unscale,
        decode=decode if conditioned else None,
        fast=FastDecoder(prepare=lambda: _speed_up(vae), latent_bytes=LATENT_BYTES, most_latents=MOST_LATENTS),
    )


def _speed_up(vae: Any) -> None:
    # Whole it is faster than in tiles; channels last, and norms in one kernel, made it slower.
    use_half(vae, channels_last=False)


def _open_image(_root: Path, request: LoadRequest, vae: Any, dtype: torch.dtype) -> EncodeImage:
    device = torch.device(request.device)
    mean, std = (values.float().view(1, -1, 1, 1, 1) for values in (vae.latents_mean, vae.latents_std))

    def encode(clip: ClipRequest, image: ReferenceImage) -> ImageCondition:
        pixels = clip_pixels(image, clip.height, clip.width, device).to(dtype)
        latents = vae.encode(pixels[:, :, None]).latent_dist.sample(reference_generator(clip.seed)).float()
        return ImageCondition(first_BCTHW=(latents - mean) / std)

    return encode


def decode_noise(request: ClipRequest, shape: torch.Size) -> Tensor:
    """Draws the noise that is put into latents of this shape before decoding, behind the clip's initial noise."""
    generator = torch.Generator().manual_seed(request.seed)
    torch.randn(shape, generator=generator)  # the initial noise, drawn by `initial_noise`
    return torch.randn(shape, generator=generator)


@contextlib.contextmanager
def library_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds, for the length of a `with` block, the noise that the decoder's own layers draw on the device."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
