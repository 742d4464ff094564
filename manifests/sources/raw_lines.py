"""The lines of a source as text, numbered, with a bound on how long one may be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from manifests.errors import Problem

MAX_LINE_BYTES = 16 << 20

_BLOCK_BYTES = 1 << 20
_LIKELY = "windows-1252"


def decoded_lines(stream: BinaryIO) -> Iterator[tuple[int, str | Problem]]:
    """Yields numbered lines with their line ends; a line that is not UTF-8 is a problem. A leading BOM is dropped."""
    for number, line in _raw_lines(stream):
        if line is None:
            allowed = f"the line is longer than {MAX_LINE_BYTES:,} bytes"
            yield number, Problem(line=number, allowed=allowed, action="shorten it, or drop columns")
            continue
        raw = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        try:
            yield number, raw.decode()
        except UnicodeDecodeError as error:
            found = repr(raw[:40])
            action = f"save it as UTF-8, or name its encoding: {_guess(raw, error.start)}"
            yield number, Problem(line=number, value=found, allowed="valid UTF-8 is needed", action=action)


def _guess(raw: bytes, start: int) -> str:
    around = raw[max(0, start - 12) : start + 12].decode(_LIKELY, "replace").strip()
    return f"--encoding {_LIKELY} would read {around!r}"


def _raw_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yields numbered lines with their line ends, None for one that is too long; such a line is not kept in memory."""
    number, held, skips = 1, b"", False
    while block := stream.read(_BLOCK_BYTES):
        *whole, held = (held + block).split(b"\n")
        for line in whole:
            yield number, None if skips or len(line) > MAX_LINE_BYTES else line + b"\n"
            number, skips = number + 1, False
        if len(held) > MAX_LINE_BYTES:
            held, skips = b"", True
    if held or skips:
        yield number, None if skips else held
