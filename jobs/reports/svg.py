"""Pieces of the pictures in reports: columns of steps, and grids of cells. Colours come from `report.css`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from jobs.reports.page import draw

CELL = 22
_MAX_CELLS_WIDTH = 1000
COMPUTED, PARTLY, REUSED = "computed", "partly", "reused"


def cell_width(num_steps: int) -> int:
    """Returns the width of a column for one step."""
    return max(4, min(CELL, _MAX_CELLS_WIDTH // max(1, num_steps)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """A column for each step, side by side. `left`: where the first begins; `cell`: how wide one is, in pixels."""

    num_steps: int
    left: int

    @property
    def cell(self) -> int:
        """The width of a column."""
        return cell_width(self.num_steps)

    @property
    def right(self) -> int:
        """Where the last column ends."""
        return self.left + self.num_steps * self.cell

    @property
    def numbered(self) -> range:
        """The steps whose numbers are written: as many as have room."""
        return range(0, self.num_steps, max(1, -(-28 // self.cell), self.num_steps // 20))

    def x(self, step: float) -> float:
        """Returns where the column of a step begins."""
        return self.left + step * self.cell

    def middle(self, step: float) -> float:
        """Returns the middle of a step's cell, which leaves 2 pixels to the next."""
        return round(self.x(step) + self.cell / 2 - 1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class GridRow:
    """A row of a grid: what each step does (COMPUTED, PARTLY or REUSED), and a note behind it."""

    label: str
    states: Sequence[str]
    note: str = ""


def grid(rows: Sequence[GridRow], words: Mapping[str, str], *, left: int, each: str) -> Markup:
    """Returns a grid, a row per `each` and a column per step, in which shape and colour tell what a step does.

    `words`: what the legend calls each state.
    """
    columns = Columns(num_steps=max((len(row.states) for row in rows), default=0), left=left)
    return draw("grid.svg", rows=rows, words=words, columns=columns, row_height=CELL, each=each)
