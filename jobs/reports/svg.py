"""Pieces of the pictures in reports. Inline SVG; colours come from `report.css`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

CELL = 22
_MAX_CELLS_WIDTH = 1000


def cell_width(num_steps: int) -> int:
    """Returns the width of a column for one step."""
    return max(4, min(CELL, _MAX_CELLS_WIDTH // max(1, num_steps)))


def mark(x: int, y: int, size: int, state: str) -> str:
    """Returns a cell that tells by shape and colour what a step does: "computed", "partly" or "reused"."""
    height = 16
    outline = f"<rect class='reused' x='{x + 0.5}' y='{y + 0.5}' width='{size - 1}' height='{height - 1}'/>"
    if state == "reused":
        return outline
    if state == "partly":
        return outline + f"<rect class='computed' x='{x}' y='{y + height // 2}' width='{size}' height='{height // 2}'/>"
    return f"<rect class='computed' x='{x}' y='{y}' width='{size}' height='{height}'/>"


def step_numbers(num_steps: int, cell: int, y: int, *, left: int) -> list[str]:
    """Returns the numbers of some steps under their columns, whose first begins at `left`."""
    every = max(1, -(-28 // cell), num_steps // 20)
    return [
        f"<text class='small' x='{left + step * cell + cell / 2 - 1:.1f}' y='{y}' text-anchor='middle'>{step}</text>"
        for step in range(0, num_steps, every)
    ]


def svg(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    """Returns a picture of some pieces; `label` says what it shows to who cannot see it."""
    return (
        f"<div class='wide'><svg role='img' aria-label='{escape(label)}' width='{width + 4}' height='{height}' "
        f"viewBox='0 0 {width + 4} {height}'>{''.join(parts)}</svg></div>"
    )
