"""Loads Latte-1 as it is published: transformer, image VAE and T5 text encoder, each in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pab.families.latte.codec import ImageCodec
from pab.families.latte.config import DEPTH, MAX_TEXT_TOKENS, NUM_FRAMES
from pab.families.latte.transformer import Latte, latte_config
from pab.family import LoadRequest
from pab.nn.noise_video import NoiseVideo, clean_texts
from pab.sampling.samplers import DDIM
from pab.text.t5_text import open_t5_text
from pab.weights.checkpoint import CheckpointError, checked_config, dtype_of, load_module, read_config, read_tensors
from pab.weights.folders import WeightFolders

VAE_CLASSES = ("AutoencoderKLTemporalDecoder", "AutoencoderKL")


def load_video_model(folders: WeightFolders, request: LoadRequest) -> NoiseVideo:
    """Loads the whole model for inference. Raises CheckpointError naming files and keys."""
    dtype, device = dtype_of(request.precision), torch.device(request.device)
    return NoiseVideo(
        transformer=load_transformer(folders.transformer, dtype, device, latent_frames=NUM_FRAMES),
        encode_text=open_t5_text(
            request, folder=folders.text_encoder, tokenizer_folder=folders.tokenizer, max_length=MAX_TEXT_TOKENS
        ),
        codec=ImageCodec(vae=load_vae(folders.vae, dtype, device)),
        sampler=lambda clip, _: DDIM(num_steps=clip.num_steps),
        device=device,
        negative_cut_by_prompt=True,
        prepare=clean_texts,
    )


def load_transformer(folder: Path, dtype: torch.dtype, device: torch.device, *, latent_frames: int) -> Latte:
    """Loads a transformer of Latte-1 or Open-Sora-Plan 1.1.0, which was trained on `latent_frames`."""
    config = latte_config(checked_config(folder, {"num_layers": DEPTH, "video_length": latent_frames}))
    return load_module(
        lambda: Latte(config),
        read_tensors(folder),
        what=f"transformer in {folder}",
        dtype=dtype,
        device=device,
        # Positions, which are computed here; older files carry them.
        surplus_ok=("pos_embed.pos_embed", "temp_pos_embed"),
    )


def load_vae(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """Loads the image VAE through diffusers: with temporal decoder or without, as its `config.json` says."""
    try:
        import diffusers
    except ImportError as error:
        raise CheckpointError("Latte's VAE needs diffusers; pip install 'pab-pipeline[models]'") from error
    config = read_config(folder)
    name = config.get("_class_name")
    if name not in VAE_CLASSES:
        raise CheckpointError(f"{folder}/config.json: _class_name={name!r}, allowed {', '.join(VAE_CLASSES)}")
    vae_class = getattr(diffusers, str(name))
    return load_module(
        lambda: vae_class.from_config(config),
        read_tensors(folder),
        what=f"VAE in {folder}",
        dtype=dtype,
        device=device,
    )
