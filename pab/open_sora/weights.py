"""Where Open-Sora 1.2's weights are: one local folder with a subfolder per part, or three hub repositories. No torch here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pab.checkpoint import Published, checkpoint_digest, find_checkpoint

_WEIGHTS = ("config.json", "*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")

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
    hub_id=WHOLE.hub_id, revision="main", components={"": "config.json, model.safetensors"}, files=_WEIGHTS
)
VAE = Published(
    hub_id="hpcai-tech/OpenSora-VAE-v1.2",
    revision="main",
    components={"": "config.json, model.safetensors"},
    files=_WEIGHTS,
)
TEXT_ENCODER = Published(
    hub_id="DeepFloyd/t5-v1_1-xxl",
    revision="main",
    components={"": "config.json, weights, spiece.model"},
    files=(*_WEIGHTS, "spiece.model", "tokenizer*.json", "special_tokens_map.json"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFolders:
    """The local folders of the model's parts."""

    transformer: Path
    vae: Path
    text_encoder: Path
    tokenizer: Path


def find_weights(weights: str | None) -> WeightFolders:
    """Returns the parts' folders: of a local folder, or fetched from the hub.

    `weights`: a local folder, a hub id of the transformer (VAE and text encoder come from where they are published), or
    None. Raises CheckpointError naming what is missing.
    """
    if weights is not None and Path(weights).expanduser().is_dir():
        root = find_checkpoint(weights, WHOLE)
        text_encoder = root / "text_encoder"
        tokenizer = root / "tokenizer"
        return WeightFolders(
            transformer=root / "transformer",
            vae=root / "vae",
            text_encoder=text_encoder,
            tokenizer=tokenizer if tokenizer.is_dir() else text_encoder,
        )
    text_encoder = find_checkpoint(None, TEXT_ENCODER)
    return WeightFolders(
        transformer=find_checkpoint(weights, TRANSFORMER),
        vae=find_checkpoint(None, VAE),
        text_encoder=text_encoder,
        tokenizer=text_encoder,
    )


def digest(weights: str | None) -> str:
    """Names the weights in a clip's digest: 16 hex digits over a local folder, or over the commits of all three parts."""
    if weights is not None and Path(weights).expanduser().is_dir():
        return checkpoint_digest(weights, WHOLE)
    parts = (
        checkpoint_digest(weights, TRANSFORMER),
        checkpoint_digest(None, VAE),
        checkpoint_digest(None, TEXT_ENCODER),
    )
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]
