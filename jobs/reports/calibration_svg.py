"""The pictures of a calibration: what changes from step to step, what reuse does, and the plan. Inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from jobs.reports.svg import CELL, cell_width, mark, step_numbers, svg

_LEFT, _HEIGHT = 170, 230
_LEGEND_COLUMNS, _LEGEND_WIDTH = 3, 230
_DASHES = ("none", "7 4", "2 3")
"""Lines are told apart by their dashes as well as by colour."""


def curves(labels: Sequence[str], values: Sequence[Sequence[float]], *, first_step: int, what: str) -> str:
    """Returns a line per label over steps, on a logarithmic axis. `values` [labels][steps], the first at `first_step`.

    Numbers that are not above 0 have no point.
    """
    num_steps = first_step + max(len(line) for line in values)
    cell = cell_width(num_steps)
    points = [value for line in values for value in line if value > 0]
    low = math.floor(math.log10(min(points))) if points else -1
    high = max(math.ceil(math.log10(max(points))) if points else 0, low + 1)
    parts = [*_decades(low, high, num_steps * cell), *step_numbers(num_steps, cell, _HEIGHT + 16, left=_LEFT)]
    for number, (label, line) in enumerate(zip(labels, values, strict=True)):
        places = [
            f"{_LEFT + (first_step + i) * cell + cell / 2 - 1:.1f},{_y(math.log10(value), low, high):.1f}"
            for i, value in enumerate(line)
            if value > 0
        ]
        title = f"<title>{escape(label)}</title>"
        parts.append(f"<polyline {_stroke(number)} points='{' '.join(places)}'>{title}</polyline>")
    rows = -(-len(labels) // _LEGEND_COLUMNS)
    for number, label in enumerate(labels):
        x, y = _LEFT + number % _LEGEND_COLUMNS * _LEGEND_WIDTH, _HEIGHT + 38 + number // _LEGEND_COLUMNS * 22
        parts.append(f"<line {_stroke(number)} x1='{x}' x2='{x + 34}' y1='{y}' y2='{y}'/>")
        parts.append(f"<text x='{x + 42}' y='{y + 4}'>{escape(label)}</text>")
    width = max(_LEFT + num_steps * cell, _LEFT + _LEGEND_COLUMNS * _LEGEND_WIDTH)
    return svg(width, _HEIGHT + 34 + rows * 22, f"{what}: steps from left to right, a line per group of sites", parts)


def plan_grid(labels: Sequence[str], computes: Sequence[Sequence[bool]]) -> str:
    """Returns a grid, a row per group and a column per step: filled computes, ring reuses. `computes` [labels][steps]."""
    num_steps = max((len(row) for row in computes), default=0)
    cell = cell_width(num_steps)
    parts = []
    for row, (label, steps) in enumerate(zip(labels, computes, strict=True)):
        y = row * CELL
        share = f"{sum(steps)} of {len(steps)}"
        parts.append(f"<text x='{_LEFT - 8}' y='{y + 15}' text-anchor='end'>{escape(label)}</text>")
        parts.append(f"<text class='small' x='{_LEFT + num_steps * cell + 6}' y='{y + 15}'>{share}</text>")
        for step, computed in enumerate(steps):
            state = "computed" if computed else "reused"
            title = f"<title>step {step}: {escape(label)} {state}</title>"
            parts.append(f"<g>{title}{mark(_LEFT + step * cell, y + 2, cell - 2, state)}</g>")
    bottom = len(labels) * CELL
    parts += step_numbers(num_steps, cell, bottom + 14, left=_LEFT)
    for i, state in enumerate(("computed", "reused")):
        x = _LEFT + i * 130
        parts.append(mark(x, bottom + 26, 16, state) + f"<text x='{x + 24}' y='{bottom + 39}'>{state}</text>")
    label = "plan: steps from left to right, a row per group of sites"
    return svg(_LEFT + num_steps * cell + 70, bottom + 48, label, parts)


def _decades(low: int, high: int, width: int) -> list[str]:
    parts = []
    for power in range(low, high + 1):
        y = _y(power, low, high)
        parts.append(f"<line class='rule' x1='{_LEFT}' x2='{_LEFT + width}' y1='{y:.1f}' y2='{y:.1f}'/>")
        # 10^-3 as people write it: a raised exponent.
        power_text = f"10<tspan dy='-5' font-size='9'>{power}</tspan>" if power else "1"
        parts.append(f"<text x='{_LEFT - 8}' y='{y + 4:.1f}' text-anchor='end'>{power_text}</text>")
    return parts


def _y(power: float, low: int, high: int) -> float:
    return 10 + (_HEIGHT - 10) * (high - power) / (high - low)


def _stroke(number: int) -> str:
    dashes = _DASHES[number // 8 % len(_DASHES)]
    return f"class='curve' style='stroke: var(--c{number % 8})' stroke-dasharray='{dashes}'"
