"""What the user sees: results on stdout (one JSON document with --json), all else on stderr."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """Where a command writes. With `as_json`, stdout holds exactly one JSON document."""

    as_json: bool = False

    def note(self, text: str) -> None:
        """Tells something on the way, on stderr."""
        print(text, file=sys.stderr, flush=True)

    def result(self, document: dict[str, object], text: str) -> None:
        """Writes the command's result: the document with --json, else the text."""
        print(json.dumps(document, indent=1, default=str) if self.as_json else text, flush=True)

    def error(self, kind: str, message: str, exit_code: int) -> None:
        """Tells why the command ended; with --json the document on stdout says it too."""
        self.note(f"error: {message}")
        if self.as_json:
            print(json.dumps({"error": {"kind": kind, "message": message}, "exit_code": exit_code}, indent=1))


def duration(seconds: float) -> str:
    """Writes a time span: `42 s`, `3 min 5 s`, `2 h 7 min`, `4 d 3 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def counted(number: int, noun: str) -> str:
    """Writes a number with its noun: `1 clip`, `2 clips`, `1,000 clips`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
