"""Writes a small Latte-1 with random weights in the published layout, for tests and for trying things on a CPU."""

from __future__ import annotations

from pathlib import Path

import torch

from pab.families.latte.config import DEPTH, MAX_TEXT_TOKENS, NUM_FRAMES
from pab.families.latte.transformer import Latte, latte_config
from pab.weights.tiny_parts import write_component, write_t5

CAPTION_CHANNELS = 32
TRANSFORMER = {
    "_class_name": "LatteTransformer3DModel",
    "num_layers": DEPTH,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "in_channels": 4,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 32,
    "video_length": NUM_FRAMES,
    "caption_channels": CAPTION_CHANNELS,
}
VAE = {
    "_class_name": "AutoencoderKLTemporalDecoder",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [32, 32, 32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "layers_per_block": 1,
    "scaling_factor": 0.18215,
}


def write_tiny_latte(folder: Path, seed: int) -> None:
    """Writes transformer/, vae/ and text_encoder/ (with its tokenizer) into a folder; a few megabytes in all."""
    import diffusers

    torch.manual_seed(seed)
    write_component(folder / "transformer", Latte(latte_config(TRANSFORMER)), TRANSFORMER)
    write_component(folder / "vae", diffusers.AutoencoderKLTemporalDecoder.from_config(VAE), VAE)
    write_t5(folder / "text_encoder", channels=CAPTION_CHANNELS, max_length=MAX_TEXT_TOKENS)
