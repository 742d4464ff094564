"""The pictures of a report's plan: which kind computes at which step, and what each step took. Inline SVG."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from jobs.reports.page import draw
from jobs.reports.step_patterns import look_of
from jobs.reports.svg import COMPUTED, PARTLY, REUSED, Columns, GridRow, grid

_LEFT, _HEIGHT, _TOP = 76, 150, 10
_WORDS = {COMPUTED: "computed", PARTLY: "some blocks computed", REUSED: "reused"}


def plan_picture(kinds: Sequence[str], patterns: Sequence[str]) -> Markup:
    """Returns a grid, a row per kind and a column per step: filled computes, ring reuses, half some blocks only."""
    rows = [
        GridRow(label=kind, states=[_state(pattern[row]) for pattern in patterns]) for row, kind in enumerate(kinds)
    ]
    return grid(rows, _WORDS, left=_LEFT, each="kind of site")


def block_picture(blocks: Sequence[tuple[str, str]]) -> Markup:
    """Returns a grid, a thin row per block and a column per step: filled computes, empty reuses. Rows in running order."""
    rows = [
        GridRow(label=name, states=[REUSED if letter == "B" else COMPUTED for letter in letters])
        for name, letters in blocks
    ]
    columns = Columns(num_steps=max((len(row.states) for row in rows), default=0), left=_LEFT)
    return draw("blocks.svg", rows=rows, columns=columns)


def bar_chart(patterns: Sequence[str], seconds: Sequence[float], kinds: Sequence[str] = ()) -> Markup:
    """Returns a bar per step, coloured by its pattern; the page has the legend. `kinds`: one for each of its letters."""
    longest = max(seconds, default=0.0) or 1.0
    return draw(
        "bars.svg",
        columns=Columns(num_steps=len(patterns), left=_LEFT),
        classes={pattern: look_of(pattern, kinds).classes for pattern in patterns},
        bars=list(zip(patterns, seconds, strict=True)),
        longest=longest,
        top=_TOP,
        bottom=_HEIGHT,
    )


def _state(letter: str) -> str:
    return REUSED if letter == "." else PARTLY if letter.isupper() else COMPUTED
