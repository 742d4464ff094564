"""How a dim is split over ranks, and what they send each other by it. Free of torch, so that a run is planned without it."""

from __future__ import annotations

from collections.abc import Sequence


def even_parts(size: int, ranks: int, *, multiple: int = 1) -> tuple[int, ...]:
    """Returns how many places of a dim each rank gets: as even as possible, the first ranks one more, in units of `multiple`.

    A dim of fewer units than ranks is one of as many: no rank is left without a place, the last ones have padding.
    """
    units = max(-(-size // multiple), ranks)
    least, more = divmod(units, ranks)
    return tuple(multiple * (least + (rank < more)) for rank in range(ranks))


def largest_part(size: int, ranks: int) -> int:
    """Returns the places of the rank that has most, for which the others wait."""
    return even_parts(size, ranks)[0]


def sent_elements(places: Sequence[int], parts: Sequence[int], rank: int, rest: int) -> int:
    """Returns how many values a rank sends when it gives the others their `parts` of a dim, of its own `places` of another.

    `rest`: the product of all other dims. The way back sends `sent_elements(parts, places, ...)`.
    """
    return places[rank] * (sum(parts) - parts[rank]) * rest
