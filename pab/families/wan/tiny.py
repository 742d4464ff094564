"""Writes a small Wan with random weights in the published layout, for tests and for trying things on a CPU."""

from __future__ import annotations

from pathlib import Path

import torch

from pab.families.wan.config import MAX_TEXT_TOKENS, WanModel
from pab.library.parts import library_class
from pab.weights.tiny_parts import write_component, write_image_processor, write_scheduler, write_t5_and_tokenizer

TEXT_CHANNELS = 32
IMAGE_CHANNELS = 16


def transformer_config(model: WanModel) -> dict[str, object]:
    """Returns the configuration of a narrow transformer of the published depth."""
    return {
        "_class_name": "WanTransformer3DModel",
        "patch_size": [1, 2, 2],
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": model.in_channels,
        "out_channels": model.latent_channels,
        "text_dim": TEXT_CHANNELS,
        "freq_dim": 32,
        "ffn_dim": 48,
        "num_layers": model.num_layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "image_dim": IMAGE_CHANNELS if model.reads_image else None,
        "added_kv_proj_dim": 24 if model.reads_image else None,
        "rope_max_seq_len": 128,
        "pos_embed_seq_len": None,
    }


VAE = {
    "_class_name": "AutoencoderKLWan",
    "base_dim": 4,
    "z_dim": 16,
    "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
}
PATCHED_VAE = {
    **VAE,
    "decoder_base_dim": 4,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.01 * (i - 24) for i in range(48)],
    "latents_std": [0.5 + 0.01 * i for i in range(48)],
}
"""Of Wan 2.2 5B, in small: it decodes to patches of 2x2 pixels."""
SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
}


def write_small_wan(folder: Path, seed: int, model: WanModel) -> None:
    """Writes a narrow model of any depth, with one expert or two."""
    torch.manual_seed(seed)
    config = transformer_config(model)
    for part in ("transformer",) if model.boundary is None else ("transformer", "transformer_2"):
        write_component(folder / part, library_class("WanTransformer3DModel").from_config(config), config)
    vae = PATCHED_VAE if model.latent_channels == PATCHED_VAE["z_dim"] else VAE
    write_component(folder / "vae", library_class("AutoencoderKLWan").from_config(vae), vae)
    write_t5_and_tokenizer(folder, channels=TEXT_CHANNELS, max_length=MAX_TEXT_TOKENS, architecture="UMT5")
    write_scheduler(folder, SCHEDULER)
    if model.reads_image:
        write_image_encoder(folder)


def write_image_encoder(folder: Path) -> None:
    """Writes a two-layer CLIP for images of 28x28 pixels into `image_encoder/`, and what prepares them beside it."""
    import transformers

    config = transformers.CLIPVisionConfig(
        hidden_size=IMAGE_CHANNELS,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        projection_dim=IMAGE_CHANNELS,
    )
    write_component(folder / "image_encoder", transformers.CLIPVisionModel(config), config.to_dict())
    write_image_processor(folder / "image_processor", 28)
