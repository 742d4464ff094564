"""How one file is to be read: found by looking at how it begins; its name's ending only says what plain text is."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from manifests.errors import ManifestError, Problem, shown
from manifests.schema import ROW_COLUMNS
from manifests.sources.files import ENDINGS, STDIN, SourceFile, is_folder, is_pattern
from manifests.sources.options import FORMATS, SourceOptions
from manifests.sources.streams import HEAD_BYTES, open_text, starts_with

_DELIMITERS = (",", ";", "\t", "|")
_PARQUET, _ZIP = b"PAR1", (b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"%PDF")
_MOST_HEAD = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceForm:
    """How a file is to be read. `kind`: csv (with `delimiter`), json, jsonl, text or parquet.

    `records`: names, joined by dots, that lead to the rows in a JSON document; None: found by looking.
    """

    kind: str
    delimiter: str = ","
    records: str | None = None
    encoding: str | None = None
    prompt_column: str = "prompt"

    @property
    def rows_are_numbered(self) -> bool:
        """Whether problems name rows, since there are no lines."""
        return self.kind in ("json", "parquet")


def source_form(file: SourceFile, options: SourceOptions) -> SourceForm:
    """Finds out how a file is to be read. Raises ManifestError for one that cannot be read, or is none of the known forms."""
    if options.format == "parquet" or (options.format is None and starts_with(file.url, _PARQUET)):
        return SourceForm(kind="parquet")
    text = _head(file.url, options.encoding)
    kind = options.format or _kind(file, text, options)
    delimiter = ","
    if kind in ("csv", "tsv"):
        found = "\t" if kind == "tsv" and options.format else _delimiter(text, _first_tried(kind), options)
        kind, delimiter = "csv", options.delimiter or found
    return SourceForm(
        kind=kind,
        delimiter=delimiter,
        records=options.records,
        encoding=options.encoding,
        prompt_column=options.prompt_column,
    )


def is_parquet(source: str) -> bool:
    """Whether a source is one Parquet file, or is called so: then reading it says what is wrong."""
    if ENDINGS.get(PurePosixPath(source).suffix.lower()) == "parquet" and not is_pattern(source):
        return True
    if source == STDIN or is_pattern(source) or is_folder(source):
        return False
    return starts_with(source, _PARQUET)


def csv_header(file: SourceFile, form: SourceForm) -> list[str]:
    """Returns the cells of a CSV file's first line."""
    return _cells(_first_line(_head(file.url, form.encoding)), form.delimiter)


def _head(url: str, encoding: str | None) -> str:
    with open_text(url, encoding=encoding) as stream:
        head = stream.read(HEAD_BYTES)
        if head.startswith(_ZIP):
            allowed = "the file is a ZIP, Excel or PDF file"
            raise ManifestError(url, [Problem(allowed=allowed, action="unpack it, or save the table as CSV")])
        if head.startswith(_PARQUET):
            action = "unpack it; Parquet is compressed within"
            raise ManifestError(url, [Problem(allowed="the file is packed Parquet", action=action)])
        if b"\x00" in head:
            allowed = "the file is no text in UTF-8"
            raise ManifestError(
                url, [Problem(allowed=allowed, action="name its encoding, such as --encoding utf-16-le")]
            )
        # A header may be longer than most; prompts are not looked at further than this.
        head += b"" if b"\n" in head or len(head) < HEAD_BYTES else stream.read(HEAD_BYTES * _MOST_HEAD)
    return head.decode("utf-8-sig", "replace")


def _kind(file: SourceFile, text: str, options: SourceOptions) -> str:
    named = ENDINGS.get(file.ending, "")
    if named == "parquet":
        raise ManifestError(
            file.url, [Problem(allowed="the file is not Parquet", action="name its form with --format")]
        )
    if (found := _json_kind(text, named)) is not None:
        return found
    if named == "text" or not named:
        cells = {cell.strip().lower() for cell in _cells(_first_line(text), _delimiter(text, ",", options))}
        wanted = {name.lower() for name in options.columns.values()} or {"prompt"}
        if (len(cells) > 1 and wanted <= cells) or len(cells & set(ROW_COLUMNS)) > 1:
            return "csv"
    if not named and file.ending:
        allowed = (
            f"the ending {file.ending!r} is not known, allowed: {', '.join(sorted(ENDINGS))}, and the file does not begin "
            "like JSON, nor like a table with a column of prompts"
        )
        raise ManifestError(
            file.url, [Problem(allowed=allowed, action=f"say what it is: --format {'|'.join(FORMATS)}")]
        )
    return named or "text"


def _json_kind(text: str, named: str) -> str | None:
    """Returns json or jsonl for a text that begins like it; else None, whatever its name says."""
    start = text.lstrip()
    first, _, rest = start.partition("\n")
    if start.startswith("{"):
        if isinstance(_parsed(first), dict):
            single = not rest.strip()
            return "json" if named == "json" and single else "jsonl"
        if len(first) >= HEAD_BYTES and named in ("json", "jsonl", ""):
            return named or "json"
        inside = first[1:].strip() or rest.strip()
        return "json" if inside.startswith('"') and named in ("", "json", "jsonl") and named != "jsonl" else None
    if start.startswith("["):
        inside = start[1:].lstrip()
        if inside.startswith("{") or (named in ("", "json") and inside.startswith(('"', "["))):
            return "json"
    return None


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _first_tried(kind: str) -> str:
    return "\t" if kind == "tsv" else ","


def _delimiter(text: str, usual: str, options: SourceOptions) -> str:
    """Returns the delimiter that makes a column of prompts out of the first line; else the one that makes most columns."""
    first = _first_line(text)
    wanted = options.prompt_column.strip().lower()
    tried = sorted(_DELIMITERS, key=lambda delimiter: delimiter != usual)
    for delimiter in tried:
        if any(cell.strip().lower() == wanted for cell in _cells(first, delimiter)):
            return delimiter
    return max(tried, key=lambda delimiter: len(_cells(first, delimiter)))


def _first_line(text: str) -> str:
    return text.partition("\n")[0].rstrip("\r")


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def listed(names: Sequence[str], most: int = 20) -> str:
    """Writes names of columns for a message."""
    return ", ".join(shown(name) for name in names[:most]) + (
        f" and {len(names) - most} more" if len(names) > most else ""
    )
