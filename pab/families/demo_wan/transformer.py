"""demo_wan's transformer: the library's own class, made small, and the file that it ships in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pab.families.demo_wan.config import NUM_LAYERS
from pab.families.wan.load import add_positions
from pab.library.parts import library_class
from pab.weights.checkpoint import CheckpointError, load_module

_CLASS = "WanTransformer3DModel"
_FORMAT = "pab-demo-wan-1"
LATENT_CHANNELS = 8
_SAVED = (
    "patch_size",
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "out_channels",
    "text_dim",
    "freq_dim",
    "ffn_dim",
    "num_layers",
    "rope_max_seq_len",
)


def transformer_config(*, small: bool = False) -> dict[str, Any]:
    """Returns the library's configuration of the shipped transformer, or with `small` of one for trying the training."""
    return {
        "patch_size": [1, 2, 2],
        "num_attention_heads": 2 if small else 4,
        "attention_head_dim": 24 if small else 64,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "text_dim": 128,
        "freq_dim": 256,
        "ffn_dim": 96 if small else 640,
        "num_layers": 2 if small else NUM_LAYERS,
        "rope_max_seq_len": 64,
    }


def build_transformer(config: dict[str, Any]) -> Any:
    """Makes an untrained transformer on the CPU. Raises CheckpointError where the library is absent."""
    return library_class(_CLASS)(**config)


def save_transformer(transformer: Any, path: Path) -> None:
    """Writes a transformer as float16 with its configuration; the file appears whole or not at all."""
    tensors = {
        key: tensor.detach().to("cpu", torch.float16).contiguous() for key, tensor in transformer.state_dict().items()
    }
    config = {key: transformer.config[key] for key in _SAVED}
    unfinished = path.with_suffix(".part")
    save_file(tensors, unfinished, metadata={"format": _FORMAT, "transformer": json.dumps(config)})
    unfinished.replace(path)


def load_transformer(path: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """Loads a transformer from a file that `save_transformer` wrote, for inference.

    What the library keeps in float32 stays so. Raises CheckpointError for a file of another kind, or without the library.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != _FORMAT:
            raise CheckpointError(f"{path} has format {metadata.get('format')!r}, demo_wan's file has {_FORMAT!r}")
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    config = json.loads(metadata["transformer"])

    def build() -> Any:
        built = build_transformer(config)
        with torch.device("cpu"):
            add_positions(built)
        return built

    loaded = load_module(
        build,
        tensors,
        what=f"{_CLASS} in {path}",
        dtype=dtype,
        device=device,
        float32_parts=tuple(library_class(_CLASS)._keep_in_fp32_modules),
    )
    return loaded.to(device)
