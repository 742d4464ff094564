"""Writes a small CogVideoX with random weights in the published layout, for tests and for trying things on a CPU."""

from __future__ import annotations

from pathlib import Path

import torch

from pab.families.cogvideox.config import MAX_TEXT_TOKENS, CogVideoXModel
from pab.library.parts import library_class
from pab.weights.tiny_parts import write_component, write_scheduler, write_t5_and_tokenizer

TEXT_CHANNELS = 32
VAE = {
    "_class_name": "AutoencoderKLCogVideoX",
    "block_out_channels": [8, 8, 8, 8],
    "latent_channels": 16,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "temporal_compression_ratio": 4,
    "scaling_factor": 1.15258426,
}


def transformer_config(model: CogVideoXModel) -> dict[str, object]:
    """Returns the configuration of a narrow transformer of the published depth."""
    return {
        "_class_name": "CogVideoXTransformer3DModel",
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": model.in_channels,
        "out_channels": 16,
        "time_embed_dim": 16,
        "text_embed_dim": TEXT_CHANNELS,
        "num_layers": model.num_layers,
        "sample_width": model.width // 8 if model.from_image else 4,
        "sample_height": model.height // 8 if model.from_image else 4,
        "sample_frames": model.num_frames if model.from_image else 9,
        "use_learned_positional_embeddings": model.from_image,
        "patch_size": 2,
        "temporal_compression_ratio": 4,
        "max_text_seq_length": MAX_TEXT_TOKENS,
        "use_rotary_positional_embeddings": model.rotary,
    }


def write_small_cogvideox(folder: Path, seed: int, model: CogVideoXModel) -> None:
    """Writes a narrow model of any depth."""
    torch.manual_seed(seed)
    config = transformer_config(model)
    write_component(folder / "transformer", library_class("CogVideoXTransformer3DModel").from_config(config), config)
    write_component(folder / "vae", library_class("AutoencoderKLCogVideoX").from_config(VAE), VAE)
    write_t5_and_tokenizer(folder, channels=TEXT_CHANNELS, max_length=MAX_TEXT_TOKENS)
    scheduler = {
        "_class_name": "CogVideoXDDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": True,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "snr_shift_scale": model.snr_shift,
        "timestep_spacing": "trailing",
    }
    write_scheduler(folder, scheduler)
