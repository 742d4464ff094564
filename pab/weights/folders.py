"""Where a published model's parts are: one local folder with a subfolder per part, or hub repositories. No torch here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pab.weights.checkpoint import CheckpointError, Published, checkpoint_digest, find_checkpoint, pin

WEIGHT_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")
"""Hub patterns of one part's files."""
TOKENIZER_FILES = ("spiece.model", "tokenizer*.json", "special_tokens_map.json")


def text_encoder_of(hub_id: str) -> Published:
    """Returns a published text encoder with its tokenizer, both at the top of a hub repository."""
    return Published(
        hub_id=hub_id,
        revision="main",
        components={"": "config.json, weights, spiece.model"},
        files=(*WEIGHT_FILES, *TOKENIZER_FILES),
    )


def library_layout(hub_id: str, *, text_encoder: str, more: Mapping[str, str] | None = None) -> Published:
    """Returns a published model in the layout of the diffusers library. `text_encoder`: its kind; `more`: further folders."""
    return Published(
        hub_id=hub_id,
        revision="main",
        components={
            "transformer": "config.json, weights",
            "vae": "config.json, weights",
            "text_encoder": f"config.json, weights ({text_encoder})",
            "tokenizer": "spiece.model or tokenizer.json",
            "scheduler": "scheduler_config.json",
            **(more or {}),
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFolders:
    """The local folders of the model's parts."""

    transformer: Path
    vae: Path
    text_encoder: Path
    tokenizer: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class HubPart:
    """A part on the hub: the repository, and the subfolder that holds the part ("" for its top)."""

    published: Published
    folder: str = ""

    def find(self, weights: str | None) -> Path:
        """Returns the part's local folder, fetched from the hub where it is not there."""
        return find_checkpoint(weights, self.published) / self.folder


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedParts:
    """A model's parts. `local` is the layout of a local folder; on the hub every part has its own place.

    A hub id given as weights names the transformer's repository; parts published elsewhere come from there. Their
    revisions may follow it, after commas: `organisation/model@v2,organisation/vae@v1`.
    """

    local: Published
    transformer: HubPart
    vae: HubPart
    text_encoder: HubPart
    tokenizer: HubPart

    def find(self, weights: str | None) -> WeightFolders:
        """Returns the parts' folders. Raises CheckpointError naming what is missing."""
        if weights is not None and Path(weights).expanduser().is_dir():
            root = find_checkpoint(weights, self.local)
            text_encoder, tokenizer = root / "text_encoder", root / "tokenizer"
            return WeightFolders(
                transformer=root / "transformer",
                vae=root / "vae",
                text_encoder=text_encoder,
                tokenizer=tokenizer if tokenizer.is_dir() else text_encoder,
            )
        try:
            found = {name: part.find(self._named(part, weights)) for name, part in self._parts().items()}
        except CheckpointError as error:
            layout = self.local.layout
            raise CheckpointError(f"{error}\nA local folder holds all parts, in subfolders:\n{layout}") from error
        return WeightFolders(**found)

    def digest(self, weights: str | None) -> str:
        """Names the weights in a clip's digest: 16 hex digits over a local folder, or over the commits of all parts."""
        if weights is not None and Path(weights).expanduser().is_dir():
            return checkpoint_digest(weights, self.local)
        pinned = self.pin(weights)
        named = [
            f"{name}={part.folder}@{checkpoint_digest(self._named(part, pinned), part.published)}"
            for name, part in self._parts().items()
        ]
        return hashlib.sha256("\n".join(named).encode()).hexdigest()[:16]

    def pin(self, weights: str | None) -> str:
        """Returns weights that mean the same tomorrow: every repository with its commit, each asked for once.

        A local folder is returned as it is given. Raises CheckpointError.
        """
        if weights is not None and Path(weights).expanduser().is_dir():
            return weights
        repositories = {part.published.hub_id: part for part in self._parts().values()}
        others = [name.partition("@")[0] for name in (weights or "").split(",")[1:]]
        if surplus := [name for name in others if name not in repositories]:
            raise CheckpointError(
                f"weights={weights!r}: {', '.join(surplus)} holds no part of this model, allowed after the first: "
                f"{', '.join(repositories)}"
            )
        return ",".join(pin(self._named(part, weights), part.published) for part in repositories.values())

    def _parts(self) -> dict[str, HubPart]:
        return {name: getattr(self, name) for name in ("transformer", "vae", "text_encoder", "tokenizer")}

    def _named(self, part: HubPart, weights: str | None) -> str | None:
        if weights is None:
            return None
        first, *others = weights.split(",")
        hub_id = part.published.hub_id
        if hub_id == self.transformer.published.hub_id:
            return first
        return next((name for name in others if name.partition("@")[0] == hub_id), None)
