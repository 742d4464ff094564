"""The JSON that prompts of Open-Sora 1.2 may end with: `a boat.{"reference_path": "boat.png", "mask_strategy": "0"}`.

Its program cuts a prompt at the first brace, and reads what follows as an object of these two names. A brace in a prompt may
also be meant as text. So what names neither of the two and is no JSON object stays text, and nothing is dropped silently.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

SUFFIX = r'\{[^{}]*"(reference_path|mask_strategy)"'
"""What shows that a prompt has such an end, as a regular expression that RE2 reads too."""
_NAMES = ("reference_path", "mask_strategy")
_FORM = '{"reference_path": "a.png", "mask_strategy": "0"}'
_SHOWS = re.compile(SUFFIX)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPrompt:
    """A prompt without its end, and what the end said; None for what it did not."""

    prompt: str
    references: str | None
    mask_strategy: str | None


def split_suffix(prompt: str) -> SplitPrompt | None:
    """Splits a prompt that ends with such JSON; returns None for one that is all text.

    Raises ValueError, which says what is needed, for an end that is meant as such JSON and cannot be read as it.
    """
    text, brace, rest = prompt.partition("{")
    if not brace:
        return None
    try:
        found = json.loads(brace + rest)
    except (ValueError, RecursionError) as error:
        if not _SHOWS.search(prompt):
            return None
        raise ValueError(f"its end is not JSON such as {_FORM}") from error
    if not isinstance(found, dict) or not found:
        return None
    unknown = sorted(found.keys() - set(_NAMES))
    if unknown:
        raise ValueError(f"its end names {unknown[0][:40]!r}, allowed are {' and '.join(_NAMES)}")
    for name, value in found.items():
        if not isinstance(value, str):
            raise ValueError(f"its end has {name}={json.dumps(value)[:40]}, a string is needed")
    return SplitPrompt(
        prompt=text.strip(),
        references=found.get("reference_path") or None,
        mask_strategy=found.get("mask_strategy") or None,
    )
