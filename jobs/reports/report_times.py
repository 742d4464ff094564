"""Seconds of clips from their records: of steps by pattern, with the cost of a warm-up kept separate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The seconds of a clip's steps with each step at the median of its pattern, so that a warm-up does not count.

    `samples`: of the pattern that was timed least often. `compiling`: a pattern was timed only where something was compiled,
    so the seconds hold compiling and say little of the steps.
    """

    seconds: float
    samples: int
    compiling: bool


class PatternTimes:
    """How long steps of each pattern take, over all clips of a size in batches of a size.

    Where a clip compiled something, its first step of each pattern may hold that; it counts only where no other was timed.
    """

    def __init__(self, records: Iterable[Json]) -> None:
        settled: dict[str, list[float]] = {}
        first: dict[str, list[float]] = {}
        for record in records:
            size, compiled = _size(record), compiled_graphs(record)
            seen: set[str] = set()
            for pattern, step_s in steps_of(record):
                spoilt = compiled and pattern not in seen
                (first if spoilt else settled).setdefault(size + pattern, []).append(step_s)
                seen.add(pattern)
        self._samples = first | settled
        self._compiling = first.keys() - settled.keys()
        self._medians = {name: median(seconds) for name, seconds in self._samples.items()}

    def settle(self, record: Json) -> Settled:
        """Returns the seconds of one of the records."""
        names = [_size(record) + pattern for pattern, _ in steps_of(record)]
        return Settled(
            seconds=sum(self._medians[name] for name in names),
            samples=min((len(self._samples[name]) for name in names), default=0),
            compiling=not self._compiling.isdisjoint(names),
        )


def settle(record: Json, others: Iterable[Json]) -> Settled:
    """Returns the seconds of a clip's steps, from its own and those of other clips like it."""
    return PatternTimes((record, *others)).settle(record)


def settled_s(record: Json, others: Iterable[Json]) -> float:
    """Returns the seconds of a clip's steps with each step at the median of its pattern, over all clips like it."""
    return settle(record, others).seconds


def compiled_graphs(record: Json) -> int:
    """Returns how many graphs were compiled while a clip was rendered; records of old say nothing of it."""
    return int(record.get("execution", {}).get("graphs", 0))


def steps_of(record: Json) -> list[tuple[str, float]]:
    """Returns pattern and seconds of every step."""
    return list(zip(record["steps"]["pattern"], record["steps"]["seconds"], strict=True))


def _size(record: Json) -> str:
    clip = record["clip"]
    guided = clip["guidance_scale"] == 1.0
    return f"{clip.get('model')}/{clip['num_frames']}x{clip['height']}x{clip['width']}/{guided}/{batch_size(record)}/"


def batch_size(record: Json) -> int:
    """Returns how many clips were rendered together with this one, itself counted; records of old have no batch."""
    return int(record.get("batch", {}).get("size", 1))


def loop_s(record: Json) -> float:
    """Returns the seconds of a clip's denoising loop."""
    return float(sum(record["steps"]["seconds"]))
