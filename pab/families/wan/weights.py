"""Where Wan's weights are. No torch here."""

from __future__ import annotations

from pab.weights.checkpoint import Published
from pab.weights.folders import library_layout


def wan_weights(hub_id: str, *, two_experts: bool = False) -> Published:
    """Returns a published model; with two experts a second transformer lies in `transformer_2/`."""
    second = {"transformer_2": "config.json, weights: the expert of low noise"} if two_experts else {}
    return library_layout(hub_id, text_encoder="UMT5", more=second)
