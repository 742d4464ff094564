"""Where Open-Sora 1.2's weights are: one local folder with a subfolder per part, or three hub repositories. No torch here."""

from __future__ import annotations

from pab.weights.checkpoint import Published
from pab.weights.folders import WEIGHT_FILES, HubPart, PublishedParts, WeightFolders, text_encoder_of

WHOLE = Published(
    hub_id="hpcai-tech/OpenSora-STDiT-v3",
    revision="main",
    components={
        "transformer": "hpcai-tech/OpenSora-STDiT-v3: config.json, model.safetensors",
        "vae": "hpcai-tech/OpenSora-VAE-v1.2: config.json, model.safetensors",
        "text_encoder": "DeepFloyd/t5-v1_1-xxl: config.json, the weights, spiece.model, tokenizer_config.json",
    },
)
"""A local folder."""
TRANSFORMER = Published(
    hub_id=WHOLE.hub_id, revision="main", components={"": "config.json, model.safetensors"}, files=WEIGHT_FILES
)
VAE = Published(
    hub_id="hpcai-tech/OpenSora-VAE-v1.2",
    revision="main",
    components={"": "config.json, model.safetensors"},
    files=WEIGHT_FILES,
)
TEXT_ENCODER = text_encoder_of("DeepFloyd/t5-v1_1-xxl")
PARTS = PublishedParts(
    local=WHOLE,
    transformer=HubPart(published=TRANSFORMER),
    vae=HubPart(published=VAE),
    text_encoder=HubPart(published=TEXT_ENCODER),
    tokenizer=HubPart(published=TEXT_ENCODER),
)


def find_weights(weights: str | None) -> WeightFolders:
    """Returns the parts' folders: of a local folder, or fetched from the hub.

    `weights`: a local folder, a hub id of the transformer (VAE and text encoder come from where they are published), or
    None. Raises CheckpointError naming what is missing.
    """
    return PARTS.find(weights)


def digest(weights: str | None) -> str:
    """Names the weights in a clip's digest: 16 hex digits over a local folder, or over the commits of all parts."""
    return PARTS.digest(weights)
