"""The energy of clips, as their records tell it: joules of GPUs that count them. Records of others tell nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

KWH_J = 3.6e6


def joules_of(told: object) -> float | None:
    """Returns the joules of a clip from the `energy` of its record; None where nobody has counted them."""
    joules = told.get("joules") if isinstance(told, dict) else None
    return float(joules) if isinstance(joules, int | float) and math.isfinite(joules) and joules > 0 else None


def energy_summary(told: Iterable[object]) -> dict[str, Any] | None:
    """Returns the joules of all clips that have a number, how many they are, and of a clip; None if there is none."""
    return summed(joules_of(each) for each in told)


def summed(joules: Iterable[float | None]) -> dict[str, Any] | None:
    """Returns what `energy_summary` does, from the joules of each clip."""
    known = [each for each in joules if each is not None]
    if not known:
        return None
    total = sum(known)
    return {"joules": round(total, 3), "clips": len(known), "joules_per_clip": round(total / len(known), 3)}


def joules_text(joules: float) -> str:
    """Writes an amount of energy: `12.5 J`, `1,250 J`, `0.35 kWh`."""
    if joules >= KWH_J / 100:
        return f"{joules / KWH_J:,.2f} kWh"
    return f"{joules:,.0f} J" if joules >= 100 else f"{joules:.3g} J"
