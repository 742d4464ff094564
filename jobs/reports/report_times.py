"""Seconds of clips from their records: of steps by pattern, with the cost of a warm-up kept separate."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

Json = dict[str, Any]


def warm_up_s(records: Iterable[Json]) -> float:
    """Returns the seconds by which first times were slower than the median of later ones.

    Of each step pattern, and of what denoising does around its steps, by size of batch. `records`: those that one process
    rendered, in order; clips that were rendered together count once. What came once only tells nothing.
    """
    seen: dict[str, list[float]] = {}
    companies: set[tuple[str, ...]] = set()
    for record in records:
        company, size = tuple(record.get("batch", {}).get("clips", ())), batch_size(record)
        if company in companies:
            continue
        if company:
            companies.add(company)
        for pattern, seconds in steps_of(record):
            seen.setdefault(_size(record) + pattern, []).append(size * seconds)
        # Libraries that load or compile at first use do it before the first step, while the text is prepared.
        around_s = size * (record["seconds"]["denoise"] - loop_s(record))
        seen.setdefault(f"around the steps of {size}", []).append(around_s)
    return sum(max(0.0, first - median(later)) for first, *later in seen.values() if later)


def settled_s(record: Json, others: Iterable[Json]) -> float:
    """Returns the seconds of a clip's steps with each step at the median of its pattern, over all clips like it.

    Like it are clips of its size in batches of its size.

    So a warm-up in the first clip of a job is not told as the time that its steps take.
    """
    seconds: dict[str, list[float]] = {}
    for other in (record, *others):
        if _size(other) == _size(record):
            for pattern, step_s in steps_of(other):
                seconds.setdefault(pattern, []).append(step_s)
    return sum(median(seconds[pattern]) for pattern, _ in steps_of(record))


def steps_of(record: Json) -> list[tuple[str, float]]:
    """Returns pattern and seconds of every step."""
    return list(zip(record["steps"]["pattern"], record["steps"]["seconds"], strict=True))


def _size(record: Json) -> str:
    clip = record["clip"]
    guided = clip["guidance_scale"] == 1.0
    return f"{clip['num_frames']}x{clip['height']}x{clip['width']}/{guided}/{batch_size(record)}/"


def batch_size(record: Json) -> int:
    """Returns how many clips were rendered together with this one, itself counted; records of old have no batch."""
    return int(record.get("batch", {}).get("size", 1))


def loop_s(record: Json) -> float:
    """Returns the seconds of a clip's denoising loop."""
    return float(sum(record["steps"]["seconds"]))
