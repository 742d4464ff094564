"""Writes demo_wan's transformer with random weights: narrow, as deep as the shipped one, in the same kind of file."""

from __future__ import annotations

from pathlib import Path

import torch

from pab.families.demo_wan.config import NUM_LAYERS
from pab.families.demo_wan.transformer import build_transformer, save_transformer, transformer_config
from pab.families.demo_wan.weights import WEIGHTS


def write_small_demo_wan(folder: Path, seed: int) -> None:
    """Writes `demo_wan.safetensors` into a folder. Text encoder and autoencoder stay the shipped ones."""
    torch.manual_seed(seed)
    transformer = build_transformer({**transformer_config(small=True), "num_layers": NUM_LAYERS})
    folder.mkdir(parents=True, exist_ok=True)
    save_transformer(transformer, folder / WEIGHTS.name)
