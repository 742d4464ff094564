"""Where Wan's weights are. No torch here."""

from __future__ import annotations

from pab.weights.checkpoint import Published
from pab.weights.folders import library_layout


def wan_weights(hub_id: str, *, two_experts: bool = False, image_encoder: bool = False) -> Published:
    """Returns a published model.

    With two experts a second transformer lies in `transformer_2/`; an image encoder has its preparations beside it.
    """
    more = {"transformer_2": "config.json, weights: the expert of low noise"} if two_experts else {}
    if image_encoder:
        more |= {
            "image_encoder": "config.json, weights (CLIP ViT-H/14, the image half)",
            "image_processor": "preprocessor_config.json",
        }
    return library_layout(hub_id, text_encoder="UMT5", more=more)
