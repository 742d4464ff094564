"""Making a Parquet manifest from CSV, JSONL or plain text: types are converted, every bad line is in one error.

The source is read twice, once to find its columns and every bad line and once to convert, so that memory stays bounded.
What the families allow is checked later, when the manifest is accepted.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.convert import Cells, cell_problems, column_type, converted
from manifests.errors import ManifestError, Problem, ProblemLog
from manifests.read import open_source
from manifests.schema import VERSION_KEY, misspelled_columns, version

KINDS: Mapping[str, str] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "text"}
"""Which kind of source a file name's ending means."""
_CHUNK_LINES = 20_000

Line = tuple[int, Cells | Problem]
"""Number of a line, from 1, and its cells by column or what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltManifest:
    """What `build` has made. `warnings`: sentences for the user."""

    num_rows: int
    columns: tuple[str, ...]
    warnings: tuple[str, ...]


def build(
    source: str,
    destination: str | os.PathLike[str],
    *,
    errors_path: str | os.PathLike[str] | None = None,
) -> BuiltManifest:
    """Makes the Parquet manifest `destination` (a local path) from a CSV, JSONL or text file at any fsspec URL.

    CSV has a header; an empty cell is null. JSONL has one object per line. Text has one prompt per line; blank lines
    are left out. The file's ending says which it is. Unknown columns are kept:
    as strings from CSV, else as the type of their values (as JSON text where those differ or are nested).
    `errors_path`: where all problems are listed, by default `<name of the source>.errors.jsonl` in the current folder.
    Raises ManifestError that names every bad line.
    """
    kind = _kind(source)
    log_path = Path(f"{PurePosixPath(source).name}.errors.jsonl" if errors_path is None else errors_path)
    with ProblemLog(source, log_path) as log:
        types: dict[str, pa.DataType] = {}
        num_rows = 0
        for number, cells in _lines(source, kind):
            if isinstance(cells, Problem):
                log.extend([cells])
                continue
            num_rows += 1
            log.extend(cell_problems(number, cells))
            for column, value in cells.items():
                types[column] = column_type(column, value, types.get(column))
        log.raise_if_any()
    if not num_rows:
        raise ManifestError(source, [Problem(allowed="the file has no prompts", action="add at least one")])
    fields = [pa.field(name, pa.string() if pa.types.is_null(type_) else type_) for name, type_ in types.items()]
    schema = pa.schema(fields)
    schema = schema.with_metadata({VERSION_KEY: version(schema).encode()})
    _write(Path(destination), schema, _lines(source, kind))
    return BuiltManifest(num_rows=num_rows, columns=tuple(schema.names), warnings=misspelled_columns(schema))


def _kind(source: str) -> str:
    ending = PurePosixPath(source).suffix
    if ending.lower() not in KINDS:
        allowed = f"the ending {ending!r} is not known, allowed: {', '.join(sorted(KINDS))}"
        raise ManifestError(source, [Problem(allowed=allowed, action="rename the file")])
    return KINDS[ending.lower()]


def _write(destination: Path, schema: pa.Schema, lines: Iterator[Line]) -> None:
    part = destination.with_name(f"{destination.name}.part")
    try:
        with pq.ParquetWriter(part, schema, compression="zstd") as writer:
            while chunk := list(itertools.islice(lines, _CHUNK_LINES)):
                rows = [cells for _, cells in chunk if not isinstance(cells, Problem)]
                arrays = [
                    pa.array([converted(row.get(field.name), field) for row in rows], field.type) for field in schema
                ]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        part.replace(destination)
    finally:
        part.unlink(missing_ok=True)


def _lines(source: str, kind: str) -> Iterator[Line]:
    readers = {"csv": _csv_lines, "jsonl": _jsonl_lines, "text": _text_lines}
    with open_source(source, cache_type="readahead") as stream:
        yield from readers[kind](stream, source)


def _decoded(stream: BinaryIO) -> Iterator[tuple[int, str | Problem]]:
    """Yields numbered lines with their line ends; a line that is not UTF-8 is a problem. A leading BOM is dropped."""
    for number, line in enumerate(stream, start=1):
        raw = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        try:
            yield number, raw.decode()
        except UnicodeDecodeError:
            found = repr(raw[:40])
            yield number, Problem(line=number, value=found, allowed="valid UTF-8 is needed", action="save it as UTF-8")


def _text_lines(stream: BinaryIO, _: str) -> Iterator[Line]:
    for number, text in _decoded(stream):
        if isinstance(text, Problem):
            yield number, text
        elif text.strip():
            yield number, {"prompt": text.strip()}


def _jsonl_lines(stream: BinaryIO, _: str) -> Iterator[Line]:
    for number, text in _decoded(stream):
        if isinstance(text, Problem):
            yield number, text
            continue
        if not text.strip():
            continue
        try:
            row = json.loads(text, object_pairs_hook=_object)
        except ValueError as error:
            allowed = f"this is not JSON ({error})"
            yield number, Problem(line=number, allowed=allowed, action="fix the line")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            allowed = "an object is needed"
            yield number, Problem(line=number, value=text.strip()[:40], allowed=allowed, action="fix the line")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(keys := {key for key, _ in pairs}) < len(pairs):
        twice = next(key for key in keys if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"the name {twice!r} is there more than once")
    return dict(pairs)


def _csv_lines(stream: BinaryIO, source: str) -> Iterator[Line]:
    broken: list[Problem] = []

    def texts() -> Iterator[str]:
        for _, text in _decoded(stream):
            if isinstance(text, Problem):
                broken.append(text)
                yield "\n"
            else:
                yield text

    reader = csv.reader(texts(), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(source, header, broken)
        start = reader.line_num + 1
        for cells in reader:
            while broken:
                problem = broken.pop()
                yield problem.line or start, problem
            if cells and len(cells) != len(header):
                allowed = f"{len(cells)} cells, the header has {len(header)}"
                yield start, Problem(line=start, allowed=allowed, action="fix the line, quote cells that hold a comma")
            elif cells:
                yield start, {name: cell if cell != "" else None for name, cell in zip(header, cells, strict=True)}
            start = reader.line_num + 1
        for problem in broken:
            yield problem.line or start, problem
    except csv.Error as error:
        yield (
            reader.line_num,
            Problem(line=reader.line_num, allowed=f"this is not CSV ({error})", action="fix the line"),
        )


def _check_header(source: str, header: list[str], broken: list[Problem]) -> None:
    problems = list(broken)
    if "prompt" not in header:
        action = "name the columns in the first line" if header else "add a header and prompts"
        problems.append(Problem(line=1, column="prompt", allowed="the column is required and missing", action=action))
    if "" in header:
        at = header.index("") + 1
        problems.append(Problem(line=1, allowed=f"column {at} has no name", action="name it or drop it"))
    problems += [
        Problem(line=1, column=name, allowed="the column is there more than once", action="drop all but one")
        for name in sorted({name for name in header if name and header.count(name) > 1})
    ]
    if problems:
        raise ManifestError(source, problems)
