"""Where demo_wan's weights are. No torch here."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).with_name("demo_wan.safetensors")
"""The transformer. Text encoder and autoencoder are the demo's, out of its own file."""


def weights_path(weights: str | None) -> Path:
    """Returns the safetensors file meant by `--weights`. Raises FileNotFoundError naming what is missing."""
    path = WEIGHTS if weights is None else Path(weights)
    if path.is_dir():
        path = path / WEIGHTS.name
    if not path.is_file():
        raise FileNotFoundError(f"weights: {path} does not exist; the demo_wan family needs a demo_wan.safetensors")
    return path
