"""Writes small Open-Sora-Plan models with random weights in the published layout, for tests and trying things on a CPU."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from pab.families.latte.transformer import Latte, latte_config
from pab.families.open_sora_plan.causal_vae import DEEP, FLAT, CausalVAE, CausalVAEConfig
from pab.families.open_sora_plan.config import DEPTH_V110, DEPTH_V120, MAX_TEXT_TOKENS_V110
from pab.families.open_sora_plan.transformer import OpenSoraPlan, open_sora_plan_config
from pab.weights.tiny_parts import write_component, write_t5

CAPTION_CHANNELS = 32
_COMMON = {
    "num_attention_heads": 2,
    "in_channels": 4,
    "patch_size": 2,
    "patch_size_t": 1,
    "caption_channels": CAPTION_CHANNELS,
}
V110 = _COMMON | {
    "_class_name": "LatteT2V",
    "num_layers": DEPTH_V110,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "out_channels": 8,
    "sample_size": [32, 32],
    "video_length": 17,
    "model_max_length": MAX_TEXT_TOKENS_V110,
}
V120 = _COMMON | {
    "_class_name": "OpenSoraT2V",
    "num_layers": DEPTH_V120,
    "attention_head_dim": 12,
    "cross_attention_dim": 24,
    "out_channels": 4,
    "sample_size": [32, 32],
    "sample_size_t": 8,
    "use_rope": True,
    "interpolation_scale_t": 1.0,
    "interpolation_scale_h": 1.0,
    "interpolation_scale_w": 1.0,
}
VAE = CausalVAEConfig(
    hidden_size=32,
    hidden_size_mult=(1, 1, 1, 1),
    num_res_blocks=1,
    # The published ones are all 3-D: at full size that alone takes most of the time on a CPU.
    decoder_resnet_blocks=(FLAT, DEEP, DEEP, DEEP),
)


def write_tiny_v110(folder: Path, seed: int) -> None:
    """Writes version 1.1.0 of 65 frames: transformer/, vae/ and text_encoder/ (with its tokenizer)."""
    torch.manual_seed(seed)
    write_component(folder / "transformer", Latte(latte_config(V110)), V110)
    _write_rest(folder)


def write_tiny_v120(folder: Path, seed: int) -> None:
    """Writes version 1.2.0: transformer/, vae/ and text_encoder/ (with its tokenizer)."""
    torch.manual_seed(seed)
    write_component(folder / "transformer", OpenSoraPlan(open_sora_plan_config(V120)), V120)
    _write_rest(folder)


def _write_rest(folder: Path) -> None:
    write_component(folder / "vae", CausalVAE(VAE), asdict(VAE))
    write_t5(folder / "text_encoder", channels=CAPTION_CHANNELS, max_length=MAX_TEXT_TOKENS_V110)
