"""What `--min-quality` says: the least that a clip under reuse may be like itself without reuse, or that nobody looks.

A setting is plain text, so the text is what jobs are given; here it is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from pab.family import NO_FLOOR, Family, QualityFloor

AUTO, ALARMS, OFF = "auto", "alarms", "off"
MEASURES: Mapping[str, tuple[str, float]] = {"psnr": ("psnr_db", 100.0), "ssim": ("ssim", 1.0), "vmaf": ("vmaf", 100.0)}
"""As users write it -> the field of `QualityFloor`, and the largest value."""
_NEEDED = "needs psnr=0..100 in dB, ssim=0..1 or vmaf=0..100 (several with a comma), auto, alarms or off"


def read_min_quality(text: str) -> str:
    """Reads what a user wrote, and returns it in one form. Raises ValueError, which says what is needed."""
    plain = text.strip().lower()
    if plain not in (AUTO, ALARMS, OFF):
        floor = _floor(plain)
        plain = ",".join(
            f"{name}={value:g}" for name, (field, _) in MEASURES.items() if (value := getattr(floor, field)) is not None
        )
    return plain


def floor_of(min_quality: str, family: Family) -> QualityFloor | None:
    """Returns what clips of a family must reach: the user's numbers, or the family's; None if the guard is off.

    A floor without numbers leaves the alarms alone, for families that nobody has measured.
    """
    if min_quality == OFF:
        return None
    if min_quality == ALARMS:
        return NO_FLOOR
    return family.floor if min_quality == AUTO else _floor(min_quality)


def floor_text(floor: QualityFloor | None) -> str:
    """Writes a floor in words, without its source."""
    if floor is None:
        return "off"
    numbers = [
        f"{name.upper()} {value:g}{' dB' if name == 'psnr' else ''}"
        for name, (field, _) in MEASURES.items()
        if (value := getattr(floor, field)) is not None
    ]
    return f"at least {', '.join(numbers)}, and no new alarm" if numbers else "no new alarm"


def _floor(text: str) -> QualityFloor:
    floor = replace(NO_FLOOR, source="--min-quality")
    for part in text.split(","):
        found = re.fullmatch(r"\s*(psnr|ssim|vmaf)\s*=\s*([0-9.]+)\s*", part)
        try:
            value = float(found[2]) if found else math.nan
        except ValueError:
            value = math.nan
        if found is None or not 0 <= value <= MEASURES[found[1]][1]:
            raise ValueError(_NEEDED)
        field = MEASURES[found[1]][0]
        if getattr(floor, field) is not None:
            raise ValueError(f"{found[1]} is given twice; {_NEEDED}")
        floor = _with(floor, field, value)
    return floor


def _with(floor: QualityFloor, field: str, value: float) -> QualityFloor:
    if field == "psnr_db":
        return replace(floor, psnr_db=value)
    return replace(floor, ssim=value) if field == "ssim" else replace(floor, vmaf=value)
