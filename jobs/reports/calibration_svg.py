"""The pictures of a calibration: what changes from step to step, what reuse does, and the plan. Inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from jobs.reports.page import draw
from jobs.reports.svg import COMPUTED, REUSED, Columns, GridRow, grid

_LEFT, _TOP, _HEIGHT = 170, 10, 230
_COLOURS = 8
_DASHES = ("none", "7 4", "2 3")
"""Lines differ by their dashes as well as by colour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A line of a picture. `points`: as SVG writes them, `x,y` after `x,y`."""

    label: str
    colour: str
    dashes: str
    points: str


def curves(labels: Sequence[str], values: Sequence[Sequence[float]], *, first_step: int, what: str) -> Markup:
    """Returns a line per label over steps, on a logarithmic axis. `values` [labels][steps], the first at `first_step`.

    Numbers that are not above 0 have no point.
    """
    columns = Columns(num_steps=first_step + max(len(line) for line in values), left=_LEFT)
    drawn = [value for line in values for value in line if value > 0]
    low = math.floor(math.log10(min(drawn))) if drawn else -1
    high = max(math.ceil(math.log10(max(drawn))) if drawn else 0, low + 1)

    def y(power: float) -> float:
        return round(_TOP + (_HEIGHT - _TOP) * (high - power) / (high - low), 1)

    lines = [
        Curve(
            label=label,
            colour=f"c{number % _COLOURS}",
            dashes=_DASHES[number // _COLOURS % len(_DASHES)],
            points=" ".join(
                f"{columns.middle(first_step + i)},{y(math.log10(value))}" for i, value in enumerate(line) if value > 0
            ),
        )
        for number, (label, line) in enumerate(zip(labels, values, strict=True))
    ]
    decades = [(power, y(power)) for power in range(low, high + 1)]
    return draw("curves.svg", curves=lines, decades=decades, columns=columns, bottom=_HEIGHT, what=what)


def plan_grid(labels: Sequence[str], computes: Sequence[Sequence[bool]]) -> Markup:
    """Returns a grid, a row per group and a column per step: filled computes, ring reuses. `computes` [labels][steps]."""
    rows = [
        GridRow(
            label=label,
            states=[COMPUTED if computed else REUSED for computed in steps],
            note=f"{sum(steps)} of {len(steps)}",
        )
        for label, steps in zip(labels, computes, strict=True)
    ]
    return grid(rows, {COMPUTED: "computed", REUSED: "reused"}, left=_LEFT, each="group of sites")
