"""Where Latte-1's weights are. No torch here."""

from __future__ import annotations

from pab.weights.checkpoint import Published
from pab.weights.folders import HubPart, PublishedParts

HUB_ID = "maxin-cn/Latte-1"
_HUB = Published(
    hub_id=HUB_ID,
    revision="main",
    components={
        "transformer": "config.json, weights",
        "vae_temporal_decoder": "config.json, weights",
        "text_encoder": "config.json, weights",
        "tokenizer": "spiece.model",
    },
)
PARTS = PublishedParts(
    local=Published(
        hub_id=HUB_ID,
        revision="main",
        components={
            "transformer": "config.json, weights",
            "vae": "config.json, weights: the hub's vae_temporal_decoder/, or its vae/",
            "text_encoder": "config.json, weights, and spiece.model unless it lies in tokenizer/",
        },
    ),
    transformer=HubPart(published=_HUB, folder="transformer"),
    vae=HubPart(published=_HUB, folder="vae_temporal_decoder"),
    text_encoder=HubPart(published=_HUB, folder="text_encoder"),
    tokenizer=HubPart(published=_HUB, folder="tokenizer"),
)
