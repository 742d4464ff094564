"""Reading the lines of a manifest's source: CSV, TSV, JSON, JSON lines or text, with a bound on how much a line may hold."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from manifests.convert import Cells
from manifests.errors import ManifestError, Problem, cut, shown
from manifests.read import open_source
from manifests.schema import FLOAT_COLUMNS

KINDS: Mapping[str, str] = {
    ".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "text",
}  # fmt: skip
"""Which kind of source a file name's ending means."""
MAX_LINE_BYTES = 16 << 20
MAX_JSON_BYTES = 64 << 20
"""A JSON document is read as a whole; JSON lines are not."""
MAX_COLUMNS = 1000

_BLOCK_BYTES = 1 << 20
_DELIMITERS = (",", ";", "\t", "|")
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")
_MOST_SHOWN = 20
_DEPTH = 3

Line = tuple[int, Cells | Problem]
"""Number of a line, from 1 (of a row in a JSON document, from 0), and its cells by column or what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceForm:
    """How a source is to be read. `kind`: a value of KINDS. `delimiter`: between the cells of CSV.

    `records`: names, joined by dots, that lead to the list of rows in a JSON document; empty for the document itself.
    """

    kind: str
    delimiter: str = ","
    records: str = ""

    @property
    def rows_are_numbered(self) -> bool:
        """Whether problems name rows, since there are no lines."""
        return self.kind == "json"


def source_form(source: str, *, prompt_column: str, delimiter: str | None, records: str | None) -> SourceForm:
    """Finds out how a source is to be read: by its ending, and where that is not enough by how it begins.

    Raises ManifestError for a file that cannot be read, and where the user has to choose.
    """
    kind = _kind(source)
    if kind in ("csv", "tsv"):
        if delimiter is None:
            delimiter = "\t" if kind == "tsv" else _delimiter(source, prompt_column)
        return SourceForm(kind="csv", delimiter=delimiter)
    if kind == "json" and _is_json_lines(source):
        return SourceForm(kind="jsonl")
    if kind == "json":
        return SourceForm(kind="json", records=_records(source, prompt_column) if records is None else records)
    return SourceForm(kind=kind)


def source_lines(source: str, form: SourceForm) -> Iterator[Line]:
    """Yields the lines of a source, one after another, with the columns as they are named there."""
    with open_source(source, cache_type="readahead") as stream:
        if form.kind == "csv":
            yield from _csv_lines(stream, form.delimiter)
        elif form.kind == "jsonl":
            yield from _jsonl_lines(stream)
        elif form.kind == "json":
            yield from _json_rows(stream, source, form.records)
        else:
            yield from _text_lines(stream)


def csv_header(source: str, form: SourceForm) -> list[str]:
    """Returns the cells of a CSV file's first line. Raises ManifestError if it is none."""
    with open_source(source, cache_type="readahead") as stream:
        first = next(_decoded(stream), (1, ""))[1]
    if isinstance(first, Problem):
        raise ManifestError(source, [first])
    return _cells(first, form.delimiter)


def _kind(source: str) -> str:
    ending = PurePosixPath(source).suffix
    if ending.lower() not in KINDS:
        allowed = f"the ending {ending!r} is not known, allowed: {', '.join(sorted(KINDS))}"
        raise ManifestError(source, [Problem(allowed=allowed, action="rename the file")])
    return KINDS[ending.lower()]


def _delimiter(source: str, prompt_column: str) -> str:
    """Returns the delimiter that makes a column of prompts out of the first line; a comma where none does."""
    with open_source(source, cache_type="readahead") as stream:
        first = next(_decoded(stream), (1, ""))[1]
    if isinstance(first, Problem):
        return ","
    wanted = prompt_column.strip().lower()
    for delimiter in _DELIMITERS:
        if any(cell.strip().lower() == wanted for cell in _cells(first, delimiter)):
            return delimiter
    return max(_DELIMITERS, key=lambda delimiter: len(_cells(first, delimiter)))


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


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


def _decoded(stream: BinaryIO) -> Iterator[tuple[int, str | Problem]]:
    """Yields numbered lines with their line ends; a line that is not UTF-8 is a problem. A leading BOM is dropped."""
    for number, line in _raw_lines(stream):
        if line is None:
            allowed = f"the line is longer than {MAX_LINE_BYTES:,} bytes"
            yield number, Problem(line=number, allowed=allowed, action="shorten it, or drop columns")
            continue
        raw = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        try:
            yield number, raw.decode()
        except UnicodeDecodeError:
            found = repr(raw[:40])
            yield number, Problem(line=number, value=found, allowed="valid UTF-8 is needed", action="save it as UTF-8")


def _text_lines(stream: BinaryIO) -> Iterator[Line]:
    for number, text in _decoded(stream):
        if isinstance(text, Problem):
            yield number, text
        elif text.strip():
            yield number, {"prompt": text.strip()}


def _jsonl_lines(stream: BinaryIO) -> Iterator[Line]:
    for number, text in _decoded(stream):
        if isinstance(text, Problem):
            yield number, text
            continue
        if not text.strip():
            continue
        try:
            row = json.loads(text, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            allowed = f"this is not JSON ({error})"
            yield number, Problem(line=number, allowed=allowed, action="fix the line")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            allowed = "an object is needed"
            yield number, Problem(line=number, value=cut(text.strip(), 40), allowed=allowed, action="fix the line")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name!r} is there more than once")
        found[name] = value
    return found


def _is_json_lines(source: str) -> bool:
    """Whether a .json file has an object a line: its first line is one, and there is more."""
    with open_source(source, cache_type="readahead") as stream:
        lines = (text for _, text in _decoded(stream) if isinstance(text, Problem) or text.strip())
        first, second = next(lines, ""), next(lines, "")
    if isinstance(first, Problem) or not second:
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _document(stream: BinaryIO, source: str) -> Any:
    data = stream.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        allowed = f"a JSON document of more than {MAX_JSON_BYTES:,} bytes is not read"
        raise ManifestError(source, [Problem(allowed=allowed, action="write it as JSON lines, one object a line")])
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ManifestError(source, [Problem(allowed=f"this is not JSON ({error})", action="fix the file")]) from error


def _records(source: str, prompt_column: str) -> str:
    """Returns the names that lead to the only list of rows in a JSON document. Raises ManifestError if there are several."""
    with open_source(source, cache_type="readahead") as stream:
        document = _document(stream, source)
    if isinstance(document, list) or (isinstance(document, dict) and isinstance(document.get(prompt_column), str)):
        return ""
    found = list(_lists(document, "", _DEPTH))
    if len(found) != 1:
        listed = ", ".join(map(shown, found[:_MOST_SHOWN]))
        allowed = (
            f"the document has {len(found)} lists of rows: {listed}" if found else "the document has no list of rows"
        )
        action = "say which one it is: --records NAME" if found else "write a list of objects"
        raise ManifestError(source, [Problem(allowed=allowed, action=action)])
    return found[0]


def _lists(value: object, name: str, depth: int) -> Iterator[str]:
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        yield name
    elif isinstance(value, dict) and depth:
        for key, inner in value.items():
            yield from _lists(inner, f"{name}.{key}" if name else key, depth - 1)


def _json_rows(stream: BinaryIO, source: str, records: str) -> Iterator[Line]:
    value = _document(stream, source)
    for name in records.split(".") if records else ():
        if not isinstance(value, dict) or name not in value:
            listed = ", ".join(map(shown, list(value)[:_MOST_SHOWN])) if isinstance(value, dict) else "no names"
            problem = Problem(
                value=f"--records {records!r}", allowed=f"the document has {listed}", action="name a list"
            )
            raise ManifestError(source, [problem])
        value = value[name]
    for number, row in enumerate(value if isinstance(value, list) else [value]):
        if isinstance(row, dict):
            yield number, row
        elif isinstance(row, str):
            yield number, {"prompt": row}
        else:
            found = cut(json.dumps(row), 40)
            yield number, Problem(row=number, value=found, allowed="an object is needed", action="fix the file")


def _csv_lines(stream: BinaryIO, delimiter: str) -> Iterator[Line]:
    broken: list[Problem] = []
    held = 0

    def texts() -> Iterator[str]:
        nonlocal held
        for _, text in _decoded(stream):
            if isinstance(text, Problem):
                broken.append(text)
                yield "\n"
                continue
            held += len(text)
            if held > MAX_LINE_BYTES:
                raise csv.Error(f"a row is longer than {MAX_LINE_BYTES:,} characters")
            yield text

    reader = csv.reader(texts(), strict=True, delimiter=delimiter)
    try:
        header = [name.strip() for name in next(reader, [])]
        start, held = reader.line_num + 1, 0
        for cells in reader:
            held = 0
            while broken:
                problem = broken.pop()
                yield problem.line or start, problem
            if cells and len(cells) != len(header):
                allowed = f"{len(cells)} cells, the header has {len(header)}"
                what = "a comma" if delimiter == "," else repr(delimiter)
                action = f"fix the line, quote cells that hold {what}"
                yield start, Problem(line=start, allowed=allowed, action=action)
            elif cells:
                yield start, _row(header, cells, delimiter)
            start = reader.line_num + 1
        for problem in broken:
            yield problem.line or start, problem
    except csv.Error as error:
        yield (
            reader.line_num,
            Problem(line=reader.line_num, allowed=f"this is not CSV ({error})", action="fix the line"),
        )


def _row(header: Sequence[str], cells: Sequence[str], delimiter: str) -> Cells:
    row: dict[str, object] = {}
    for name, cell in zip(header, cells, strict=True):
        if delimiter == ";" and name.lower() in FLOAT_COLUMNS and _DECIMAL_COMMA.fullmatch(cell):
            # Where ; divides cells, the comma divides numbers.
            row[name] = cell.replace(",", ".")
        else:
            row[name] = cell if cell != "" else None
    return row
