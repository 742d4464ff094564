"""Where CogVideoX's weights are. No torch here."""

from __future__ import annotations

from pab.weights.checkpoint import Published
from pab.weights.folders import library_layout


def cogvideox_weights(hub_id: str) -> Published:
    """Returns a published model."""
    return library_layout(hub_id, text_encoder="T5 1.1 XXL")
