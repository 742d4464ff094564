"""docs/performance.md: every table of figures names its cards and its command, and H100 and H200 stand apart."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.bench.rows import chosen_rows
from pipeline.parser import build_parser

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/performance.md").read_text()
CARDS = ("H100", "H200")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of a page. `caption`: the paragraph right above it; `rows`: cells of the rows below `header`."""

    caption: str
    header: list[str]
    rows: list[list[str]]

    @property
    def has_figures(self) -> bool:
        return any(re.match(r"\**\d|not measured", cell) for row in self.rows for cell in row)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def tables(page: str) -> list[Table]:
    found: list[Table] = []
    blocks = re.split(r"\n\n+", re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE))
    for before, block in zip(["", *blocks], blocks, strict=False):
        lines = block.strip().splitlines()
        if lines and lines[0].startswith("|"):
            found.append(
                Table(caption=before.strip(), header=cells(lines[0]), rows=[cells(line) for line in lines[2:]])
            )
    return found


def told_cards(text: str) -> list[str]:
    return [card for card in CARDS if card in text]


def what_is_missing(table: Table) -> str | None:
    """Returns what a table of figures does not say; None if it says everything."""
    if "cards" in table.header:
        place = table.header.index("cards")
        cards = ["".join(told_cards(row[place])) for row in table.rows]
        if set(cards) - set(CARDS):
            return "a card of each row"
        if len([card for card, last in zip(cards, ["", *cards], strict=False) if card != last]) != len(set(cards)):
            return "H100 and H200 apart"
    else:
        bold = re.match(r"\*\*(.*?)\*\*", table.caption)
        if bold is None or len(told_cards(bold[1])) != 1:
            return "one kind of card, in bold, in the paragraph above it"
    if "command" not in table.header and not re.search(r"`python -m |[Nn]o command", table.caption):
        return "a command, or that there is none"
    return None


def test_every_table_of_figures_names_its_cards_and_a_command() -> None:
    wrong = [(what_is_missing(table), table.caption[:80], table.header) for table in tables(PAGE) if table.has_figures]
    assert len(wrong) > 15
    assert [each for each in wrong if each[0]] == []


@pytest.mark.parametrize(
    ("page", "missing"),
    [
        ("Seconds.\n\n| a | s |\n|---|---|\n| x | 1.5 |\n", "one kind of card"),
        ("**One H100 and one H200.** `python -m x`\n\n| a | s |\n|---|---|\n| x | **1.5** |\n", "one kind of card"),
        ("**One H100.** Seconds.\n\n| a | s |\n|---|---|\n| x | 1.5 |\n", "a command"),
        ("`python -m x`\n\n| a | cards |\n|---|---|\n| 1 | one H100 |\n| 2 | H200 |\n| 3 | H100 |\n", "apart"),
        ("`python -m x`\n\n| a | cards |\n|---|---|\n| 1 | one H100 |\n| 2 | a card |\n", "a card of each row"),
    ],
)
def test_a_table_that_does_not_say_it_is_found(page: str, missing: str) -> None:
    (table,) = tables(page)
    assert table.has_figures
    assert missing in (what_is_missing(table) or "")


def test_every_command_beside_a_figure_is_one_that_the_program_knows() -> None:
    commands = re.findall(r"`python -m pipeline ([^`]*)`", PAGE.replace("\n", " "))
    assert len(commands) > 10
    for command in commands:
        arguments = build_parser().parse_args(shlex.split(command))
        if arguments.command == "bench" and arguments.rows:
            assert chosen_rows([row.strip() for row in arguments.rows.split(",")])


def test_the_figures_of_readmes_first_screen_are_those_of_the_page() -> None:
    first = tables((ROOT / "README.md").read_text())[0]
    (same,) = [table for table in tables(PAGE) if table.header == first.header]
    assert first.rows == same.rows
    assert "cards" in first.header
    assert "command" in first.header
