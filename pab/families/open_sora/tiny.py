"""Writes a small Open-Sora 1.2 with random weights in the published layout, for tests and for trying things on a CPU."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from pab.families.open_sora.stdit3 import STDiT3
from pab.families.open_sora.stdit3_blocks import STDiT3Config
from pab.families.open_sora.temporal_vae import TemporalVAEConfig
from pab.families.open_sora.vae import SCALE, SHIFT, OpenSoraVAE, OpenSoraVAEConfig
from pab.vae.image_vae import ImageVAEConfig
from pab.weights.tiny_parts import write_component, write_t5

CAPTION_CHANNELS = 32
TRANSFORMER = STDiT3Config(hidden_size=32, num_heads=2, caption_channels=CAPTION_CHANNELS, model_max_length=48)
VAE = OpenSoraVAEConfig(
    spatial=ImageVAEConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4),
    temporal=TemporalVAEConfig(filters=8, num_res_blocks=1, num_groups=4),
)


def write_tiny_open_sora(folder: Path, seed: int) -> None:
    """Writes transformer/, vae/ and text_encoder/ (with its tokenizer) into a folder; a few megabytes in all."""
    torch.manual_seed(seed)
    transformer_config = {"model_type": "STDiT3", **asdict(TRANSFORMER)}
    write_component(folder / "transformer", STDiT3(TRANSFORMER), transformer_config)
    vae_config = {
        "vae_2d": asdict(VAE.spatial),
        "vae_temporal": asdict(VAE.temporal),
        "micro_frame_size": VAE.chunk_frames,
        "scale": SCALE,
        "shift": SHIFT,
    }
    write_component(folder / "vae", OpenSoraVAE(VAE), vae_config)
    write_t5(folder / "text_encoder", channels=CAPTION_CHANNELS, max_length=TRANSFORMER.model_max_length)
