"""What the user sees: results on stdout (one JSON document with --json), all else on stderr.

Prompts, URLs, ids, a store's messages and a job's log come from elsewhere, so all text is made printable here.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from manifests.printable import printable


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """Where a command writes. With `as_json`, stdout holds exactly one JSON document."""

    as_json: bool = False

    def note(self, text: str) -> None:
        """Says something on the way, on stderr."""
        print(printable(text), file=sys.stderr, flush=True)

    def result(self, document: dict[str, object], text: str) -> None:
        """Writes the command's result: the document with --json, else the text."""
        told = json.dumps(document, indent=1, default=str) if self.as_json else printable(text)
        print(_in_letters_of(sys.stdout.encoding, told), flush=True)

    def error(self, kind: str, message: str, exit_code: int) -> None:
        """Tells why the command ended; with --json the document on stdout says it too."""
        self.note(f"error: {message}")
        if self.as_json:
            document = {"error": {"kind": kind, "message": message}, "exit_code": exit_code}
            try:
                print(json.dumps(document, indent=1), flush=True)
            except BrokenPipeError:
                raise
            except OSError as error:  # such as a full disk, which may be what the message is about
                self.note(f"error: stdout takes no JSON ({error.strerror})")


def _in_letters_of(encoding: str | None, text: str) -> str:
    # A prompt may hold letters that a terminal or a file of this locale cannot take; stderr escapes them by itself.
    return text if encoding is None else text.encode(encoding, "backslashreplace").decode(encoding)


def own_command(*words: str) -> str:
    """Returns what to type, for messages: how this program was called, and `words` as a shell needs them quoted."""
    called = "pab-pipeline" if Path(sys.argv[0]).name == "pab-pipeline" else "python -m pipeline"
    return f"{called} {shlex.join(words)}" if words else called


def counted(number: int, noun: str) -> str:
    """Writes a number with its noun: `1 clip`, `2 clips`, `1,000 clips`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
