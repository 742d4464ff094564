"""What the manifest in a video says: that a model made it, which one, and of what. docs/provenance.md lists it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

PROGRAM = "pab-pipeline"
ACTIONS = "c2pa.actions.v2"
CLIP = f"{PROGRAM}.clip"
"""The label of our own assertion. It is no word of C2PA's: other readers show it as it is."""
MADE_BY_A_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's word for media that a trained model made."""
PROMPT_CHOICES = ("hash", "text")


def definition(*, title: str, version: str, made_at: str, clip: Mapping[str, object]) -> dict[str, Any]:
    """Returns the manifest of a video as the C2PA library takes it.

    `title`: the video's name. `version`: of this program. `made_at`: when rendering began, as ISO 8601 with a time zone.
    `clip`: what our own assertion says.
    """
    agent = {"name": PROGRAM, "version": version}
    created = {
        "action": "c2pa.created",
        "when": made_at,
        "softwareAgent": agent,
        "digitalSourceType": MADE_BY_A_MODEL,
    }
    return {
        "claim_generator_info": [agent],
        "title": title,
        "format": "video/mp4",
        "assertions": [
            {"label": ACTIONS, "data": {"actions": [created]}},
            {"label": CLIP, "data": dict(clip)},
        ],
    }


def text_facts(name: str, text: str | None, choice: str) -> dict[str, str]:
    """Returns what a manifest says of a text: itself, or the SHA-256 of its UTF-8 bytes. Nothing for no text.

    `choice`: one of `PROMPT_CHOICES`.
    """
    if text is None:
        return {}
    if choice == "text":
        return {name: text}
    return {f"{name}_sha256": hashlib.sha256(text.encode()).hexdigest()}
