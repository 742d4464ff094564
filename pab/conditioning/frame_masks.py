"""Which latent frames of a clip are given by reference images or videos, in the words of Open-Sora's mask strategy.

A strategy is entries joined by `;`, each `loop,reference,reference_start,target_start,length,edit_ratio` with trailing parts
left out at will. Starts count latent frames, negative ones from the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_DEFAULTS = (0.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameEntry:
    """One entry of a strategy. `edit_ratio`: 0 keeps the frames as they are, 1 draws them anew."""

    loop: int
    reference: int
    reference_start: int
    target_start: int
    length: int
    edit_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameMask:
    """A strategy applied to one clip.

    `levels`: per latent frame 1 where it is generated, 0 where it is kept, between where it starts from that much
    noise. `sources`: per latent frame the (reference, latent frame) it is a copy of, or None.
    """

    levels: tuple[float, ...]
    sources: tuple[tuple[int, int] | None, ...]


def read_strategy(strategy: str) -> list[FrameEntry]:
    """Reads a strategy. Raises ValueError naming the entry."""
    return [_entry(text) for text in strategy.split(";") if text.strip()]


def _entry(text: str) -> FrameEntry:
    parts = text.strip().split(",")
    try:
        values = [float(part) if i == len(_DEFAULTS) - 1 else int(part) for i, part in enumerate(parts)]
    except ValueError as error:
        raise ValueError(f"mask strategy {text!r}: {error}; needs whole numbers, then an edit ratio") from error
    if len(values) > len(_DEFAULTS):
        raise ValueError(f"mask strategy {text!r} has {len(values)} parts, needs at most {len(_DEFAULTS)}")
    filled: list[float] = [*values, *_DEFAULTS[len(values) :]]
    *whole, edit_ratio = filled
    loop, reference, reference_start, target_start, length = map(int, whole)
    if not 0 <= edit_ratio <= 1:
        raise ValueError(f"mask strategy {text!r}: edit ratio {edit_ratio:g}, allowed 0 to 1")
    return FrameEntry(
        loop=loop,
        reference=reference,
        reference_start=reference_start,
        target_start=target_start,
        length=length,
        edit_ratio=edit_ratio,
    )


def place_entries(
    entries: Sequence[FrameEntry], reference_frames: Sequence[int], latent_frames: int, *, align: int | None
) -> FrameMask:
    """Applies entries in their order to a clip of `latent_frames`: a later one replaces what it meets.

    `reference_frames`: latent frames of each reference. `align`: starts are moved to multiples of it, since the VAE
    decodes so many latent frames together. Raises ValueError for a reference that is not there.
    """
    levels = [1.0] * latent_frames
    sources: list[tuple[int, int] | None] = [None] * latent_frames
    for entry in entries:
        if not 0 <= entry.reference < len(reference_frames):
            raise ValueError(f"a mask strategy names reference {entry.reference}, the clip has {len(reference_frames)}")
        given = reference_frames[entry.reference]
        source = _start(entry.reference_start, given, align)
        target = _start(entry.target_start, latent_frames, align)
        for i in range(min(entry.length, latent_frames - target, given - source)):
            levels[target + i] = entry.edit_ratio
            sources[target + i] = (entry.reference, source + i)
    return FrameMask(levels=tuple(levels), sources=tuple(sources))


def _start(value: int, size: int, align: int | None) -> int:
    """Returns a start counted from the front, moved to the multiple of `align` below it, or above it if that is nearer."""
    value = value + size if value < 0 else value
    if align is None:
        return value
    multiple, rest = divmod(value, align)
    nearer_above = rest > align / 2 and multiple < size // align - 1
    return (multiple + nearer_above) * align
