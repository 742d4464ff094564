"""Text that somebody else wrote, made safe for a terminal or a log: control characters would move the cursor or hide text."""

from __future__ import annotations

_KEPT = "\n\t"


def printable(text: str) -> str:
    """Returns the text with every character that cannot be printed as its escape (`\\x1b`); lines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in _KEPT else _escaped(one) for one in text)


def one_line(text: str) -> str:
    """Returns what `printable` does, with line breaks and tabs as escapes too."""
    return text if text.isprintable() else "".join(one if one.isprintable() else _escaped(one) for one in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()
