"""Where CogVideoX's weights are, in the layout of the diffusers library. No torch here."""

from __future__ import annotations

from pab.weights.checkpoint import Published


def cogvideox_weights(hub_id: str) -> Published:
    """Returns a published model."""
    return Published(
        hub_id=hub_id,
        revision="main",
        components={
            "transformer": "config.json, weights",
            "vae": "config.json, weights",
            "text_encoder": "config.json, weights (T5 1.1 XXL)",
            "tokenizer": "spiece.model or tokenizer.json",
            "scheduler": "scheduler_config.json",
        },
    )
