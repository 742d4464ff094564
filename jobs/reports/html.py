"""A report as one page: nothing is loaded from elsewhere, and light and dark are both legible."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files


def page(title: str, sections: Iterable[str]) -> str:
    """Returns a whole page of some sections of HTML."""
    style = (files("jobs.reports") / "report.css").read_text()
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(title)}</title><style>{style}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Iterable[int]) -> str:
    """Returns a table of text; the columns `numbers` stand to the right."""
    right = set(numbers)

    def cells(tag: str, row: Sequence[str]) -> str:
        opens = [f"<{tag} class='n'>" if i in right else f"<{tag}>" for i in range(len(row))]
        return "".join(f"{start}{escape(str(cell))}</{tag}>" for start, cell in zip(opens, row, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<div class='wide'><table><thead><tr>{cells('th', head)}</tr></thead><tbody>{body}</tbody></table></div>"


def tiles(values: Iterable[tuple[str, str]]) -> str:
    """Returns the few figures that count, large."""
    shown = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in values)
    return f"<dl class='tiles'>{shown}</dl>"
