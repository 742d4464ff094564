"""Loads LTX-2 as the diffusers library lays it out.

A clip's latents are all values of its video [C, T, H, W] and then all of its sound [C, L, bins], in a row: one denoising
loop renders both.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pab.broadcast.state import BOTH
from pab.families.ltx2.attention import VideoSelfAttention, ltx2_plan
from pab.families.ltx2.config import (
    FRAME_STRIDE,
    HEIGHT,
    LATENT_CHANNELS,
    NUM_FRAMES,
    PIXEL_STRIDE,
    SOUND_BINS,
    SOUND_CHANNELS,
    WIDTH,
    Ltx2Model,
    ltx2_tokens,
    sound_latents,
    video_latents,
)
from pab.families.ltx2.loras import LTX2_LORAS
from pab.families.ltx2.sites import ltx2_sites
from pab.families.ltx2.sound import SoundDecoder, load_sound_decoder
from pab.families.ltx2.text import open_ltx2_text
from pab.family import ClipRequest, LoadRequest
from pab.library.broadcast_module import LATENTS
from pab.library.fast_decode import MOST_LATENTS, FastDecoder, use_half
from pab.library.load import LibraryModel, load_library_model
from pab.library.parts import ClipLevels, LibrarySampler, library_class
from pab.library.stretched_levels import SCHEDULER, even_levels, log_shift, moved_levels, moved_timesteps
from pab.library.vae import TiledCodec, open_codec
from pab.library.video import DiffusersVideo
from pab.model import DecodedFrames, StepInput
from pab.parallel.mesh import NodeGroup
from pab.text.states import TextStates
from pab.weights.checkpoint import CheckpointError, read_config

_TRANSFORMER = {
    "_class_name": "LTX2VideoTransformer3DModel",
    "in_channels": LATENT_CHANNELS,
    "audio_in_channels": SOUND_CHANNELS * SOUND_BINS,
    "patch_size": 1,
    "patch_size_t": 1,
    "rope_type": "split",
}
_VAE = {"_class_name": "AutoencoderKLLTX2Video", "latent_channels": LATENT_CHANNELS, "timestep_conditioning": False}
_LATER = ("cross_attn_mod", "audio_cross_attn_mod", "gated_attn", "perturbed_attn")
"""What configurations of 2.3 and later switch on."""
LATENT_BYTES = 1.0e6
"""Held for each latent while a tile is decoded in 16 bits: counted, 128 channels of 8 x 8 x 8 places, eight times."""
Text = tuple[Tensor, Tensor, Tensor]
"""States for the video [rows, L, C], for the sound, and mask [rows, L]."""


def load_ltx2(root: Path, request: LoadRequest, model: Ltx2Model) -> DiffusersVideo:
    """Loads the whole model for inference. Raises CheckpointError naming files, keys and values."""
    config = read_config(root / "transformer")
    if later := [name for name in _LATER if config.get(name)]:
        raise CheckpointError(
            f"{root / 'transformer' / 'config.json'}: {later[0]}=True is of LTX-2.3 or later, which renders by other rules; "
            "this family is LTX-2.0"
        )
    if (
        "use_cross_timestep"
        not in inspect.signature(library_class(str(_TRANSFORMER["_class_name"])).forward).parameters
    ):
        raise CheckpointError("the installed diffusers knows LTX-2 by older rules; install 0.42 or newer")
    described = LibraryModel(
        transformer={**_TRANSFORMER, "num_layers": model.num_layers},
        vae=_VAE,
        scheduler=SCHEDULER,
        sampler=Ltx2Sampler,
        sites=ltx2_sites(model.num_layers),
        streams=(LATENTS, "audio_hidden_states"),
        read_streams=2,
        attention=VideoSelfAttention,
        plan=ltx2_plan(model.num_layers),
        levels=_levels,
        default_size=(NUM_FRAMES, HEIGHT, WIDTH),
        encode_text=partial(open_ltx2_text, model),
        prepare_text=partial(_prepare_text, int(str(config.get("caption_channels", 3840)))),
        denoiser=Ltx2Denoiser,
        codec=ltx2_codec,
        guided_passes=(BOTH,),
        loras=LTX2_LORAS,
    )
    loaded = load_library_model(described, root, request)
    assert isinstance(loaded.codec, TiledCodec), "the library's VAE"
    codec = Ltx2Codec(video=loaded.codec, sound=load_sound_decoder(root, torch.device(request.device)))
    return replace(loaded, codec=codec, shape_of=lambda clip: (1, 1, 1, sum(_counts(clip))))


def _levels(num_steps: int, size: tuple[int, int, int]) -> ClipLevels:
    tokens = ltx2_tokens(*size)
    given = {"sigmas": list(even_levels(num_steps)), "mu": log_shift(tokens)}
    return ClipLevels(planned=moved_timesteps(num_steps, tokens), given=given)


def _prepare_text(video_width: int, text: TextStates, dtype: torch.dtype, device: torch.device) -> Text:
    states = text.y_BLC.to(device=device, dtype=dtype)
    return states[..., :video_width], states[..., video_width:], text.mask_BL.to(device)


def _counts(clip: ClipRequest) -> tuple[int, int]:
    """Returns how many values a clip's video and its sound have."""
    tokens = ltx2_tokens(clip.num_frames, clip.height, clip.width)
    return LATENT_CHANNELS * tokens, SOUND_CHANNELS * SOUND_BINS * sound_latents(clip.num_frames, clip.fps)


def streams(latents: Tensor, clip: ClipRequest) -> tuple[Tensor, Tensor]:
    """Takes a clip's latents [B, 1, 1, 1, N] apart: video [B, C, T, H, W] and sound [B, C, L, bins]."""
    video, sound = latents.flatten(1).split(_counts(clip), dim=1)
    shape = (LATENT_CHANNELS, *video_latents(clip.num_frames, clip.height, clip.width))
    return video.unflatten(1, shape), sound.unflatten(1, (SOUND_CHANNELS, -1, SOUND_BINS))


class Ltx2Sampler(LibrarySampler):
    """The scheduler's update of a prediction that is the video and sound without noise, as guidance combines it."""

    def combine(self, cond: Tensor, uncond: Tensor, guidance_scale: float) -> Tensor:
        """Returns the guided prediction."""
        return cond + (guidance_scale - 1) * (cond - uncond)

    def advance(self, latents: Tensor, model_input: Tensor, prediction: Tensor, step: int) -> Tensor:
        """Returns the latents after the step."""
        velocity = (latents - prediction) / self.scheduler.sigmas[step]
        return super().advance(latents, model_input, velocity, step)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ltx2Denoiser:
    """Runs the transformer, which wants the tokens of the video and of the sound in rows, and the frame rate."""

    experts: tuple[Any, ...]
    dtype: torch.dtype

    def __call__(self, rows: Tensor, step_input: StepInput, text: Text) -> Tensor:
        """Returns rows [rows, 1, 1, 1, N], float32, without the noise that the transformer predicts."""
        request, (video_text, sound_text, mask) = step_input.request, text
        video, sound = streams(rows, request)
        timestep = torch.full((len(rows),), step_input.timestep, device=rows.device)
        video_BSC, sound_BSC = self.experts[0](
            hidden_states=video.to(self.dtype).flatten(2).transpose(1, 2).contiguous(),
            audio_hidden_states=sound.to(self.dtype).transpose(1, 2).flatten(2),
            encoder_hidden_states=video_text,
            audio_encoder_hidden_states=sound_text,
            timestep=timestep,
            sigma=timestep,
            encoder_attention_mask=mask,
            audio_encoder_attention_mask=mask,
            num_frames=video.shape[2],
            height=video.shape[3],
            width=video.shape[4],
            fps=float(request.fps),
            audio_num_frames=sound.shape[2],
            use_cross_timestep=False,
            return_dict=False,
        )
        sound_out = sound_BSC.unflatten(2, (SOUND_CHANNELS, SOUND_BINS)).transpose(1, 2)
        velocity = torch.cat([video_BSC.transpose(1, 2).flatten(1), sound_out.flatten(1)], dim=1).float()
        # The scheduler's own level, a float32 value, before it becomes a timestep.
        tokens = ltx2_tokens(request.num_frames, request.height, request.width)
        return rows - velocity.reshape(rows.shape) * moved_levels(request.num_steps, tokens)[step_input.step]


def ltx2_codec(vae: Any, dtype: torch.dtype) -> TiledCodec:
    """Returns the decoder of a loaded VAE, for the video."""
    mean, std = (values.float().view(1, -1, 1, 1, 1) for values in (vae.latents_mean, vae.latents_std))
    return open_codec(
        vae,
        strides=(FRAME_STRIDE, PIXEL_STRIDE),
        channels=LATENT_CHANNELS,
        unscale=lambda latents, _request: (latents * std / vae.config.scaling_factor + mean).to(dtype),
        fast=FastDecoder(prepare=lambda: _speed_up(vae), latent_bytes=LATENT_BYTES, most_latents=MOST_LATENTS),
    )


def _speed_up(vae: Any) -> None:
    # Whole it is faster than in tiles; channels last, and norms in one kernel, made it slower.
    use_half(vae, channels_last=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ltx2Codec:
    """Decodes video on all ranks of a clip, and its sound on the clip's root."""

    video: TiledCodec
    sound: SoundDecoder

    @property
    def grid(self) -> Any:
        """Where the tiles of the video lie."""
        return self.video.grid

    def use_fast(self) -> None:
        """Has videos decoded faster from now on; sound is decoded as before."""
        self.video.use_fast()

    def compiled_parts(self) -> Sequence[nn.Module]:
        """Returns what of the fast decoder compiles."""
        return self.video.compiled_parts()

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        """Returns (C, T, H, W) of the video alone."""
        return self.video.latent_shape(num_frames, height, width)

    @torch.inference_mode()
    def decode_frames(self, latents: Tensor, request: ClipRequest, group: NodeGroup) -> DecodedFrames:
        """Returns frames and sound on the device; of no clip on ranks other than the clip's root. Collective."""
        video, sound = streams(latents, request)
        decoded = self.video.decode_frames(video, request, group)
        if not group.is_clip_root:
            return decoded
        heard = self.sound(sound)
        spoilt = (~heard.samples.isfinite()).flatten(1).sum(dim=1)
        return replace(decoded, sound=heard, not_finite=decoded.not_finite + spoilt.to(decoded.not_finite.dtype))
