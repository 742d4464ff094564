"""The rows of one source file: CSV, JSON, JSON lines, text or Parquet, with a bound on what a row may hold."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa

from manifests.convert import Cells
from manifests.errors import Problem, cut
from manifests.read import open_manifest
from manifests.schema import FLOAT_COLUMNS
from manifests.sources.documents import document_rows, without_duplicates
from manifests.sources.form import SourceForm
from manifests.sources.raw_lines import MAX_LINE_BYTES, decoded_lines
from manifests.sources.streams import open_text

MAX_COLUMNS = 1000

_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")
_PARQUET_ROWS = 4096

Line = tuple[int, Cells | Problem]
"""Number of a line, from 1 (of a row in JSON documents and Parquet, from 0), and its cells, or what is wrong with it."""


def source_lines(url: str, form: SourceForm) -> Iterator[Line]:
    """Yields the rows of a file, with the columns as they are named there."""
    if form.kind == "parquet":
        yield from _parquet_rows(url)
        return
    with open_text(url, encoding=form.encoding) as stream:
        if form.kind == "csv":
            yield from _csv_lines(stream, form.delimiter)
        elif form.kind == "jsonl":
            yield from _jsonl_lines(stream)
        elif form.kind == "json":
            yield from document_rows(stream, url, form.records, form.prompt_column)
        else:
            yield from _text_lines(stream)


def unkept_columns(url: str) -> tuple[str, ...]:
    """Returns the columns of a Parquet file that hold bytes, such as pictures: a manifest keeps none."""
    with open_manifest(url) as file:
        return tuple(field.name for field in file.schema if _holds_bytes(field.type))


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_nested(kind):
        return any(_holds_bytes(kind.field(at).type) for at in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _parquet_rows(url: str) -> Iterator[Line]:
    with open_manifest(url) as file:
        kept = [field.name for field in file.schema if not _holds_bytes(field.type)]
        number = 0
        for batch in file.iter_batches(kept, batch_rows=_PARQUET_ROWS):
            for row in batch.to_pylist():
                yield number, row
                number += 1


def _text_lines(stream: BinaryIO) -> Iterator[Line]:
    for number, text in decoded_lines(stream):
        if isinstance(text, Problem):
            yield number, text
        elif text.strip():
            yield number, {"prompt": text.strip()}


def _jsonl_lines(stream: BinaryIO) -> Iterator[Line]:
    for number, text in decoded_lines(stream):
        if isinstance(text, Problem):
            yield number, text
            continue
        if not text.strip():
            continue
        try:
            row = json.loads(text, object_pairs_hook=without_duplicates)
        except (ValueError, RecursionError) as error:
            allowed = f"this is not JSON ({error})"
            yield number, Problem(line=number, allowed=allowed, action="fix the line")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            allowed = "an object is needed"
            yield number, Problem(line=number, value=cut(text.strip(), 40), allowed=allowed, action="fix the line")


def _csv_lines(stream: BinaryIO, delimiter: str) -> Iterator[Line]:
    broken: list[Problem] = []
    held = 0

    def texts() -> Iterator[str]:
        nonlocal held
        for _, text in decoded_lines(stream):
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
    row: dict[str, Any] = {}
    for name, cell in zip(header, cells, strict=True):
        if delimiter == ";" and name.lower() in FLOAT_COLUMNS and _DECIMAL_COMMA.fullmatch(cell):
            # Where ; divides cells, the comma divides numbers.
            row[name] = cell.replace(",", ".")
        else:
            row[name] = cell if cell != "" else None
    return row
