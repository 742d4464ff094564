"""Clips of several loops: each is generated to go on from the last frames of the one before. No torch here.

A prompt may have a text for each: `|0| a sunny day |2| a rainy day` says what loops 0 and 1 show, and what loop 2
and all that follow do.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from itertools import pairwise

FIRST_SCENE = "|0|"
"""How a prompt with a text for each loop begins."""
MAX_LOOPS = 16
"""The frames of all loops are held until the clip is encoded."""
_SCENE = re.compile(r"\|(\d+)\|")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loops:
    """How a clip's loops go on from each other.

    `condition_frame_length`: latent frames that a loop begins with, the last ones of the loop before; they are in the video
    once. `condition_frame_edit`: 0 keeps them as they are, 1 draws them anew; between, they start from that much noise.
    """

    count: int = 1
    condition_frame_length: int = 0
    condition_frame_edit: float = 0.0


ONE_LOOP = Loops()


def split_scenes(prompt: str) -> tuple[list[str], list[int] | None]:
    """Returns the scenes of `|0| a sunny day |2| a rainy day` and the loop each begins at; None for a plain prompt."""
    if not prompt.startswith(FIRST_SCENE):
        return [prompt], None
    _, *parts = _SCENE.split(prompt)
    return [text.strip() for text in parts[1::2]], [int(number) for number in parts[::2]]


def count_loops(prompt: str) -> int:
    """Returns how many loops a prompt names a text for, up to its last scene.

    Raises ValueError for scenes that do not rise, or have no text.
    """
    texts, starts = split_scenes(prompt)
    if starts is None:
        return 1
    if any(later <= earlier for earlier, later in pairwise(starts)):
        told = ", ".join(map(str, starts))
        raise ValueError(f"the prompt's scenes begin at loops {told}, they must rise")
    for text, start in zip(texts, starts, strict=True):
        if not text:
            raise ValueError(f"the prompt's scene |{start}| has no text")
    return starts[-1] + 1


def loop_texts(prompt: str, count: int) -> tuple[str, ...]:
    """Returns the text of each of `count` loops: that of the last scene that has begun."""
    texts, starts = split_scenes(prompt)
    if starts is None:
        return (prompt,) * count
    return tuple(texts[sum(start <= loop for start in starts) - 1] for loop in range(count))


def loop_seed(seed: int, loop: int) -> int:
    """Returns the seed of a loop's noise: the clip's own for the first, one derived from it for each that follows."""
    if loop == 0:
        return seed
    digest = hashlib.sha256(f"loop/1\n{seed}\n{loop}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
