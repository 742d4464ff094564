"""Where HunyuanVideo's weights are, in the layout of the diffusers library. No torch here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pab.weights.checkpoint import CheckpointError, Published, checkpoint_digest, find_checkpoint, pin

_COMPANIONS = {
    "vae": "config.json, weights",
    "text_encoder": "config.json, weights (LLaMA 3 8B)",
    "tokenizer": "tokenizer.json, tokenizer_config.json",
    "text_encoder_2": "config.json, weights (CLIP ViT-L/14, the text half)",
    "tokenizer_2": "vocab.json, merges.txt, tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
_HUB_ID = "hunyuanvideo-community/HunyuanVideo"


@dataclass(frozen=True, slots=True, kw_only=True)
class HunyuanWeights:
    """A published model: all of it in one place, or a transformer of its own beside another model's other parts.

    A hub id given as weights names the transformer's repository where that has one of its own; after a comma the other
    parts' may follow, as `pin` writes them.
    """

    whole: Published
    own_transformer: Published | None = None
    companions: Published | None = None

    def find(self, weights: str | None) -> tuple[Path, Path]:
        """Returns the transformer's folder and the folder of the other parts. Raises CheckpointError."""
        if self.own_transformer is None or self.companions is None or _is_local(weights):
            root = find_checkpoint(weights, self.whole)
            return root / "transformer", root
        first, other = self._named(weights, self.companions)
        return find_checkpoint(first, self.own_transformer), find_checkpoint(other, self.companions)

    def pin(self, weights: str | None) -> str:
        """Returns weights that mean the same tomorrow: a local folder as given, or hub ids with their commits."""
        if self.own_transformer is None or self.companions is None or _is_local(weights):
            return pin(weights, self.whole)
        first, other = self._named(weights, self.companions)
        return f"{pin(first, self.own_transformer)},{pin(other, self.companions)}"

    def digest(self, weights: str | None) -> str:
        """Names the weights in a clip's digest: 16 hex digits over a local folder's files, or over hub ids and commits."""
        if self.own_transformer is None or self.companions is None or _is_local(weights):
            return checkpoint_digest(weights, self.whole)
        return hashlib.sha256(self.pin(weights).encode()).hexdigest()[:16]

    def _named(self, weights: str | None, companions: Published) -> tuple[str | None, str | None]:
        first, _, other = (weights or "").partition(",")
        if other and other.partition("@")[0] != companions.hub_id:
            raise CheckpointError(
                f"weights={weights!r}: {other} holds no part of this model, allowed after the first: {companions.hub_id}"
            )
        return first or None, other or None


def _is_local(weights: str | None) -> bool:
    return weights is not None and Path(weights).expanduser().is_dir()


def _published(components: dict[str, str], hub_id: str = _HUB_ID) -> Published:
    return Published(hub_id=hub_id, revision="main", components=components)


def _from_image(hub_id: str) -> HunyuanWeights:
    """Returns a model of image to video: its text encoder sees images, which are prepared by a file beside it."""
    components = {
        "transformer": "config.json, weights",
        **_COMPANIONS,
        "text_encoder": "config.json, weights (LLaVA: LLaMA 3 8B that sees images)",
        "image_processor": "preprocessor_config.json",
    }
    return HunyuanWeights(whole=_published(components, hub_id))


_WHOLE = _published({"transformer": "config.json, weights", **_COMPANIONS})
HUNYUAN_VIDEO_WEIGHTS = HunyuanWeights(whole=_WHOLE)
I2V_WEIGHTS = _from_image("hunyuanvideo-community/HunyuanVideo-I2V")
I2V_33CH_WEIGHTS = _from_image("hunyuanvideo-community/HunyuanVideo-I2V-33ch")
SKYREELS_WEIGHTS = HunyuanWeights(
    whole=_WHOLE,
    own_transformer=Published(
        hub_id="Skywork/SkyReels-V1-Hunyuan-T2V", revision="main", components={"": "config.json, weights"}
    ),
    companions=_published(_COMPANIONS),
)
