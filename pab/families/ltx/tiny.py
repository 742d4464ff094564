"""Writes a small LTX-Video with random weights in the published layout, for tests and for trying things on a CPU."""

from __future__ import annotations

from pathlib import Path

import torch

from pab.families.ltx.config import LtxModel
from pab.library.parts import library_class
from pab.library.stretched_levels import SCHEDULER
from pab.weights.tiny_parts import write_component, write_scheduler, write_t5_and_tokenizer

TEXT_CHANNELS = 32
_CHANNELS = [4, 8, 8, 8]
VAE = {
    "_class_name": "AutoencoderKLLTXVideo",
    "latent_channels": 128,
    "block_out_channels": _CHANNELS,
    "decoder_block_out_channels": _CHANNELS,
    "layers_per_block": [1, 1, 1, 1, 1],
    "decoder_layers_per_block": [1, 1, 1, 1, 1],
    "spatio_temporal_scaling": [True, True, True, False],
    "decoder_spatio_temporal_scaling": [True, True, True, False],
    "decoder_inject_noise": [False, False, False, False, False],
    "timestep_conditioning": False,
    "decoder_causal": False,
}
"""Of 0.9.0."""
TIMESTEP_VAE = VAE | {
    "decoder_block_out_channels": [8, 16, 32],
    "decoder_layers_per_block": [1, 1, 1, 1],
    "decoder_spatio_temporal_scaling": [True, True, True],
    "decoder_inject_noise": [True, True, True, False],
    "upsample_residual": [True, True, True],
    "upsample_factor": [2, 2, 2],
    "timestep_conditioning": True,
}
"""Of 0.9.1: the decoder knows the timestep and draws noise of its own."""
VAE_095 = TIMESTEP_VAE | {
    "block_out_channels": [4, 8, 8, 8, 8],
    "down_block_types": ["LTXVideo095DownBlock3D"] * 4,
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "spatio_temporal_scaling": [True, True, True, True],
    "decoder_inject_noise": [False, False, False, False],
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
"""Of 0.9.5 and later: no noise within the decoder."""
CONDITION_SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
}


def transformer_config(num_layers: int) -> dict[str, object]:
    """Returns the configuration of a narrow transformer of the published depth."""
    return {
        "_class_name": "LTXVideoTransformer3DModel",
        "in_channels": 128,
        "out_channels": 128,
        "patch_size": 1,
        "patch_size_t": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "cross_attention_dim": 32,
        "num_layers": num_layers,
        "caption_channels": TEXT_CHANNELS,
    }


def write_small_ltx(folder: Path, seed: int, model: LtxModel, *, timestep_vae: bool = True) -> None:
    """Writes a narrow model of any depth, with the decoder of 0.9.1 or that of 0.9.0."""
    torch.manual_seed(seed)
    config, vae_config = transformer_config(model.num_layers), TIMESTEP_VAE if timestep_vae else VAE
    if model.takes_conditions:
        vae_config = VAE_095
    write_component(folder / "transformer", library_class("LTXVideoTransformer3DModel").from_config(config), config)
    vae = library_class("AutoencoderKLLTXVideo").from_config(vae_config)
    with torch.no_grad():
        vae.latents_mean.normal_()
        vae.latents_std.uniform_(0.5, 1.5)
        for name, parameter in vae.decoder.named_parameters():
            if "per_channel_scale" in name:
                parameter.normal_(std=0.1)  # zeros when new: no noise would reach the pixels
    write_component(folder / "vae", vae, vae_config)
    write_t5_and_tokenizer(folder, channels=TEXT_CHANNELS, max_length=model.max_text_tokens)
    write_scheduler(folder, CONDITION_SCHEDULER if model.takes_conditions else {**SCHEDULER, "shift": 1.0})
