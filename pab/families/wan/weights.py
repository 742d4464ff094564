"""Where Wan's weights are, in the layout of the diffusers library. No torch here."""

from __future__ import annotations

from pab.weights.checkpoint import Published

_PARTS = {
    "transformer": "config.json, weights",
    "vae": "config.json, weights",
    "text_encoder": "config.json, weights (UMT5)",
    "tokenizer": "spiece.model or tokenizer.json",
    "scheduler": "scheduler_config.json",
}


def wan_weights(hub_id: str, *, two_experts: bool = False) -> Published:
    """Returns a published model; with two experts a second transformer lies in `transformer_2/`."""
    second = {"transformer_2": "config.json, weights: the expert of low noise"} if two_experts else {}
    return Published(hub_id=hub_id, revision="main", components={**_PARTS, **second})
