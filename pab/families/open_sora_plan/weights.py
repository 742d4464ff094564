"""Where Open-Sora-Plan's weights are: one hub repository a version, the text encoder in another. No torch here."""

from __future__ import annotations

from pab.weights.checkpoint import Published
from pab.weights.folders import HubPart, PublishedParts, text_encoder_of

T5_XXL, MT5_XXL = "DeepFloyd/t5-v1_1-xxl", "google/mt5-xxl"


def published_parts(hub_id: str, *, transformer: str, text_encoder: str) -> PublishedParts:
    """Returns the parts of one version: `transformer` is the hub's subfolder, `text_encoder` another hub id."""
    here = {"transformer": transformer, "vae": "vae"}
    parts = {
        name: HubPart(
            published=Published(hub_id=hub_id, revision="main", components={folder: "config.json, weights"}),
            folder=folder,
        )
        for name, folder in here.items()
    }
    text = HubPart(published=text_encoder_of(text_encoder))
    return PublishedParts(
        local=Published(
            hub_id=hub_id,
            revision="main",
            components={
                "transformer": f"{hub_id}, subfolder {transformer}: config.json, weights",
                "vae": f"{hub_id}, subfolder vae: config.json, weights",
                "text_encoder": f"{text_encoder}: config.json, weights, and spiece.model unless it lies in tokenizer/",
            },
        ),
        transformer=parts["transformer"],
        vae=parts["vae"],
        text_encoder=text,
        tokenizer=text,
    )
