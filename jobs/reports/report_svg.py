"""The pictures of a report's plan: which kind computes at which step, and what each step took. Inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from jobs.reports.svg import CELL, cell_width, mark, step_numbers, svg

_LEFT, _HEIGHT = 76, 150
_ROW = 10
_LETTER_WORDS = {"computed": "computed", "partly": "some blocks computed", "reused": "reused"}


def duration(seconds: float) -> str:
    """Returns three digits with the unit that fits: `3.28 s`, `12.5 ms`."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def plan_picture(kinds: Sequence[str], patterns: Sequence[str]) -> str:
    """Returns a grid, a row per kind and a column per step: filled computes, ring reuses, half some blocks only."""
    cell = cell_width(len(patterns))
    parts = []
    for row, kind in enumerate(kinds):
        y = row * CELL
        parts.append(f"<text x='{_LEFT - 8}' y='{y + 15}' text-anchor='end'>{escape(kind)}</text>")
        for step, pattern in enumerate(patterns):
            state = _state(pattern[row])
            title = f"<title>step {step}: {kind} {_LETTER_WORDS[state]}</title>"
            parts.append(f"<g>{title}{mark(_LEFT + step * cell, y + 2, cell - 2, state)}</g>")
    bottom = len(kinds) * CELL
    parts += step_numbers(len(patterns), cell, bottom + 14, left=_LEFT)
    legend = []
    for i, (state, words) in enumerate(_LETTER_WORDS.items()):
        x = _LEFT + i * 200
        legend.append(mark(x, bottom + 26, 16, state) + f"<text x='{x + 22}' y='{bottom + 39}'>{words}</text>")
    width = max(_LEFT + len(patterns) * cell, _LEFT + 3 * 200)
    label = "plan: steps from left to right, a row per kind of site"
    return svg(width, bottom + 48, label, parts + legend)


def block_picture(blocks: Sequence[tuple[str, str]]) -> str:
    """Returns a grid, a thin row per block and a column per step: filled computes, empty reuses. Rows in running order."""
    num_steps = max((len(letters) for _, letters in blocks), default=0)
    cell = cell_width(num_steps)
    parts = []
    for row, (name, letters) in enumerate(blocks):
        y = row * _ROW
        for step, letter in enumerate(letters):
            state = "reused" if letter == "B" else "computed"
            parts.append(
                f"<rect class='{state}' x='{_LEFT + step * cell}' y='{y}' width='{cell - 2}' height='{_ROW - 2}'>"
                f"<title>step {step}: {escape(name)} {state}</title></rect>"
            )
        if row % 4 == 0:
            short = name.replace("transformer_blocks", "blocks").replace("_blocks", "")
            parts.append(f"<text class='small' x='{_LEFT - 8}' y='{y + 8}' text-anchor='end'>{escape(short)}</text>")
    bottom = len(blocks) * _ROW
    parts += step_numbers(num_steps, cell, bottom + 14, left=_LEFT)
    label = "what was computed: steps from left to right, a row per block; an empty cell reuses"
    return svg(_LEFT + num_steps * cell, bottom + 20, label, parts)


def bar_chart(patterns: Sequence[str], seconds: Sequence[float]) -> str:
    """Returns a bar per step, coloured by its pattern, with the pattern's letters in the legend."""
    cell = cell_width(len(patterns))
    top = max(seconds, default=0.0) or 1.0
    colours = {pattern: f"c{i % 8}" for i, pattern in enumerate(dict.fromkeys(patterns))}
    parts = []
    for line in range(3):
        y = 10 + (_HEIGHT - 10) * line / 2
        label = duration(top * (1 - line / 2))
        parts.append(f"<line class='rule' x1='{_LEFT}' x2='{_LEFT + len(patterns) * cell}' y1='{y:.1f}' y2='{y:.1f}'/>")
        parts.append(f"<text x='{_LEFT - 8}' y='{y + 4:.1f}' text-anchor='end'>{label}</text>")
    for step, (pattern, step_s) in enumerate(zip(patterns, seconds, strict=True)):
        height = (_HEIGHT - 10) * step_s / top
        title = f"<title>step {step}: {escape(pattern)}, {duration(step_s)}</title>"
        parts.append(
            f"<rect class='{colours[pattern]}' x='{_LEFT + step * cell}' y='{_HEIGHT - height:.1f}' "
            f"width='{cell - 2}' height='{max(height, 0.5):.1f}'>{title}</rect>"
        )
    parts += step_numbers(len(patterns), cell, _HEIGHT + 14, left=_LEFT)
    columns = 5
    for i, (pattern, colour) in enumerate(colours.items()):
        x, y = _LEFT + i % columns * 110, _HEIGHT + 26 + i // columns * 20
        parts.append(
            f"<rect class='{colour}' x='{x}' y='{y}' width='14' height='14'/>"
            f"<text class='code' x='{x + 20}' y='{y + 12}'>{escape(pattern)}</text>"
        )
    rows = -(-len(colours) // columns)
    width = max(_LEFT + len(patterns) * cell, _LEFT + columns * 110)
    return svg(width, _HEIGHT + 30 + rows * 20, "seconds per step, median over clips, coloured by pattern", parts)


def _state(letter: str) -> str:
    return "reused" if letter == "." else "partly" if letter.isupper() else "computed"
