"""Which LoRAs a clip is rendered with. Free of torch."""

from __future__ import annotations

from dataclasses import replace

from manifests.clip import Clip
from manifests.loras import split_loras
from pab.weights.lora import Lora, read_lora


def clip_loras(clip: Clip, of_run: tuple[Lora, ...]) -> tuple[Lora, ...]:
    """Returns the LoRAs that the clip's row names, or none if it says so; else those of the run for its family."""
    if clip.lora is None:
        return of_run
    digests = (clip.lora_digests or "").split()
    texts = split_loras(clip.lora) if digests else ()
    return tuple(replace(read_lora(text), digest=digest) for text, digest in zip(texts, digests, strict=True))
