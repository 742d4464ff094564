"""Loads Open-Sora 1.2 as it is published: the transformer, the VAE and the T5 text encoder, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pab.families.open_sora import fast_vae
from pab.families.open_sora.config import DEPTH, REFERENCES
from pab.families.open_sora.levels import levels, model_fps, model_size
from pab.families.open_sora.prompts import Scores, model_prompt
from pab.families.open_sora.sizes import CHUNK_FRAMES, CHUNK_LATENTS
from pab.families.open_sora.stdit3 import STDiT3
from pab.families.open_sora.stdit3_blocks import STDiT3Config
from pab.families.open_sora.stdit3_video import STDiT3Video
from pab.families.open_sora.temporal_vae import TemporalVAEConfig
from pab.families.open_sora.vae import SCALE, SHIFT, Noise, OpenSoraVAE, OpenSoraVAEConfig
from pab.family import ClipRequest, LoadRequest
from pab.model import DecodedFrames
from pab.nn.video import frames_of_no_clip
from pab.parallel.mesh import NodeGroup
from pab.text.prompt_cleaning import clean
from pab.text.t5_text import open_t5_text
from pab.vae.image_vae import ImageVAEConfig
from pab.weights.checkpoint import CheckpointError, dtype_of, load_module, read_config, read_tensors
from pab.weights.folders import WeightFolders


def load_video_model(folders: WeightFolders, request: LoadRequest) -> STDiT3Video:
    """Loads the whole model for inference. Raises CheckpointError, ValueError for a precision it does not run in."""
    dtype, device, precision = dtype_of(request.precision), torch.device(request.device), request.precision
    transformer = load_transformer(folders.transformer, dtype, device)
    vae = load_vae(folders.vae, dtype, device)
    return STDiT3Video(
        transformer=transformer,
        encode_text=open_t5_text(
            request,
            folder=folders.text_encoder,
            tokenizer_folder=folders.tokenizer,
            max_length=transformer.config.model_max_length,
        ),
        codec=OpenSoraCodec(vae=vae),
        timesteps=lambda clip: levels(clip, precision),
        model_fps=model_fps,
        model_size=lambda clip: model_size(clip, precision),
        prepare=prepare_texts,
        references=REFERENCES,
    )


def prepare_texts(request: ClipRequest) -> ClipRequest:
    """Returns the clip with its prompt scored and cleaned, its negative prompt cleaned."""
    negative = request.negative_prompt
    return replace(
        request,
        prompt=model_prompt(request.prompt, Scores()),
        negative_prompt=None if negative is None else clean(negative),
    )


def load_transformer(folder: Path, dtype: torch.dtype, device: torch.device) -> STDiT3:
    """Loads the transformer whose sizes `config.json` names."""
    config = STDiT3Config(**_known(STDiT3Config, read_config(folder)))
    if config.depth != DEPTH:
        raise CheckpointError(f"{folder}/config.json: depth={config.depth}, Open-Sora 1.2 has {DEPTH}")
    return load_module(
        lambda: STDiT3(config),
        read_tensors(folder),
        what=f"Open-Sora transformer in {folder}",
        dtype=dtype,
        device=device,
        # a buffer that the published model computes itself
        surplus_ok=("pos_embed.inv_freq",),
    )


def load_vae(folder: Path, dtype: torch.dtype, device: torch.device) -> OpenSoraVAE:
    """Loads the VAE, of the published sizes where `config.json` names none."""
    config = vae_config(read_config(folder))
    return load_module(
        lambda: OpenSoraVAE(config), read_tensors(folder), what=f"Open-Sora VAE in {folder}", dtype=dtype, device=device
    )


def vae_config(values: Mapping[str, object]) -> OpenSoraVAEConfig:
    """Reads the VAE's `config.json`. Raises CheckpointError for other constants than the published ones."""
    for name, published in (("scale", SCALE), ("shift", SHIFT)):
        stated = values.get(name)
        if stated is not None and stated != list(published):
            raise CheckpointError(f"VAE config.json: {name}={stated}, this model has {list(published)}")
    spatial, temporal = values.get("vae_2d"), values.get("vae_temporal")
    chunk_frames = values.get("micro_frame_size", 17)
    return OpenSoraVAEConfig(
        spatial=ImageVAEConfig(**_known(ImageVAEConfig, spatial if isinstance(spatial, dict) else {})),
        temporal=TemporalVAEConfig(**_known(TemporalVAEConfig, temporal if isinstance(temporal, dict) else {})),
        chunk_frames=chunk_frames if isinstance(chunk_frames, int) else None,
    )


def _known(config: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries that a configuration class has fields for, lists as tuples."""
    names = {field.name for field in fields(config)}
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items() if key in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSoraCodec:
    """Decodes latents with the VAE, on all ranks of the clip."""

    vae: OpenSoraVAE

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        """Returns (C, T, H, W) of a clip of this pixel size."""
        return self.vae.latent_shape(num_frames, height, width)

    def use_fast(self) -> None:
        """Has clips decoded by the decoders that are laid out for speed from now on."""
        fast_vae.use_fast(self.vae)

    def encode_frames(self, pixels_BCTHW: Tensor, noise: Noise) -> Tensor:
        """Returns latents [B, C, t, H/8, W/8] float32 of whole chunks of frames, on the model's device."""
        return self.vae.encode(pixels_BCTHW.to(self.vae.scale.device), noise).float()

    def encode_end(self, latents: Tensor, latent_frames: int, noise: Noise) -> Tensor:
        """Decodes the last latent frames and encodes them again: whole chunks, which no frame before them changes."""
        assert latent_frames % CHUNK_LATENTS == 0, f"{latent_frames} latent frames are no whole chunks"
        num_frames = latent_frames // CHUNK_LATENTS * CHUNK_FRAMES
        return self.encode_frames(self.vae.decode(latents[:, :, -latent_frames:], num_frames), noise)

    @torch.inference_mode()
    def decode_frames(self, latents: Tensor, request: ClipRequest, group: NodeGroup) -> DecodedFrames:
        """Returns frames on the device; of no clip on ranks other than the clip's root. Collective."""
        decoded = self.vae.decode_frames(latents, request.num_frames, group.clip)
        return frames_of_no_clip(request) if decoded is None else decoded
