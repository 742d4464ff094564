"""Where demo_wan's weights are, and what names them. No torch here."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pab.families.demo.config import WEIGHTS as DEMO_WEIGHTS
from pab.weights.digest import weights_digest

WEIGHTS = Path(__file__).with_name("demo_wan.safetensors")
"""The transformer. Text encoder and autoencoder are the demo's, always those of the shipped `demo.safetensors`."""


def weights_path(weights: str | None) -> Path:
    """Returns the safetensors file meant by `--weights`. Raises FileNotFoundError naming what is missing."""
    path = WEIGHTS if weights is None else Path(weights)
    if path.is_dir():
        path = path / WEIGHTS.name
    if not path.is_file():
        raise FileNotFoundError(f"weights: {path} does not exist; the demo_wan family needs a demo_wan.safetensors")
    return path


def demo_wan_digest(weights: str | None, demo: Path = DEMO_WEIGHTS) -> str:
    """Returns 16 hex digits over both files that loading reads. Raises FileNotFoundError naming one that is missing."""
    both = weights_digest(weights_path(weights)) + weights_digest(demo)
    return hashlib.sha256(both.encode()).hexdigest()[:16]
