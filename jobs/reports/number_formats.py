"""How figures are written on pages. What is not known is a dash."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from jobs.quality.headline import many
from jobs.reports.report_energy import joules_text

UNKNOWN = "-"


def seconds(value: float | None) -> str:
    """Writes a time that was measured: `12.5 ms`, `3.28 s`."""
    if value is None:
        return UNKNOWN
    return f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.2f} s"


def axis_seconds(value: float) -> str:
    """Writes three digits with the unit that fits: `3.28 s`, `12.5 ms`."""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def duration(value: float) -> str:
    """Writes a time span of `value` seconds: `42 s`, `3 min 5 s`, `2 h 7 min`, `4 d 3 h`."""
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def byte_size(value: float) -> str:
    """Writes a size: `12 B`, `3.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} TiB"


def number(value: float | None) -> str:
    """Writes a count with commas, and another number with as many digits as tell something: `1,234`, `56.78`."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:.2f}"


def fixed(value: float | None, digits: int) -> str:
    """Writes a number with so many digits after the point."""
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """Writes a share of 1: `12.3%`."""
    return UNKNOWN if value is None else f"{value:.{digits}%}"


def share(part: float, whole: float) -> str:
    """Writes a part of a whole in percent: `50%`; a whole of 0 has no parts."""
    return percent(part / whole if whole else None, 0)


def times(value: float | None) -> str:
    """Writes a factor: `1.23x`."""
    return UNKNOWN if value is None else f"{value:.2f}x"


def decibels(value: float | None, digits: int = 1) -> str:
    """Writes a PSNR; None and an infinite one are of frames that are the same."""
    return "the same frames" if value is None or math.isinf(value) else f"{value:.{digits}f} dB"


def energy(value: float | None) -> str:
    """Writes an amount of energy, in joules or kilowatt-hours."""
    return UNKNOWN if value is None else joules_text(value)


FILTERS: Mapping[str, Callable[..., Any]] = {
    writes.__name__: writes
    for writes in (
        seconds,
        axis_seconds,
        duration,
        byte_size,
        number,
        fixed,
        percent,
        share,
        times,
        decibels,
        many,
        energy,
    )
}
"""What templates write figures with: `{{ clip.denoise_s|seconds }}`."""
