"""Making a Parquet manifest from CSV, TSV, JSON, JSON lines or text: types are converted, every bad line is in one error.

The source is read twice, once to find its columns and every bad line and once to convert, so that memory stays bounded.
What the families allow is checked later, when the manifest is accepted.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.convert import Cells, cell_problems, column_type, converted
from manifests.errors import ManifestError, Problem, ProblemLog, shown
from manifests.schema import ROW_COLUMNS, VERSION_KEY, misspelled_columns, version
from manifests.source_lines import (
    KINDS,
    MAX_COLUMNS,
    Line,
    SourceForm,
    csv_header,
    source_form,
    source_lines,
)
from manifests.suffixes import split_suffix

__all__ = ["KINDS", "BuiltManifest", "build"]
_CHUNK_LINES = 20_000
_CHUNK_CHARS = 32 << 20
_MOST_SHOWN = 20


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
    prompt_column: str | None = None,
    records: str | None = None,
    delimiter: str | None = None,
    overwrite: bool = False,
) -> BuiltManifest:
    """Makes the Parquet manifest `destination` (a local path) from a CSV, TSV, JSON or text file at any fsspec URL.

    CSV has a header; an empty cell is null. JSON lines have one object per line, a JSON document has a list of objects. Text
    has one prompt per line; blank lines are left out. The file's ending says which it is. Names of our columns may be written
    in any case. Unknown columns are kept: as strings from CSV, else as the type of their values (as JSON text where those
    differ or are nested). `prompt_column`: which column is the prompt. `records`: names joined by dots that lead to the rows
    of a JSON document. `delimiter`: between the cells of CSV; found from the header unless given. `overwrite`: whether an
    existing destination is replaced; the source never is. `errors_path`: where all problems are listed, by default
    `<name of the source>.errors.jsonl` in the current folder. Raises ManifestError that names every bad line.
    """
    target = _target(source, Path(destination), overwrite=overwrite)
    form = source_form(source, prompt_column=prompt_column or "prompt", delimiter=delimiter, records=records)
    columns = _Columns(prompt_column)
    if form.kind == "csv":
        _check_header(source, csv_header(source, form), columns)
    log_path = Path(f"{PurePosixPath(source).name}.errors.jsonl" if errors_path is None else errors_path)
    with ProblemLog(source, log_path) as log:
        types: dict[str, pa.DataType] = {}
        num_rows = 0
        for number, cells in columns.named(source_lines(source, form), form):
            if isinstance(cells, Problem):
                log.extend([cells])
                continue
            num_rows += 1
            log.extend(_numbered(problem, form) for problem in cell_problems(number, cells))
            for column, value in cells.items():
                types[column] = column_type(column, value, types.get(column))
            if len(types) > MAX_COLUMNS:
                allowed = f"the rows have more than {MAX_COLUMNS} columns"
                raise ManifestError(source, [Problem(line=number, allowed=allowed, action="drop some")])
        log.raise_if_any()
    if not num_rows:
        raise ManifestError(source, [Problem(allowed="the file has no prompts", action="add at least one")])
    fields = [pa.field(name, pa.string() if pa.types.is_null(type_) else type_) for name, type_ in types.items()]
    schema = pa.schema(fields)
    schema = schema.with_metadata({VERSION_KEY: version(schema).encode()})
    _write(target, schema, columns.named(source_lines(source, form), form), overwrite=overwrite)
    warnings = (*columns.warnings(), *misspelled_columns(schema))
    return BuiltManifest(num_rows=num_rows, columns=tuple(schema.names), warnings=warnings)


def _numbered(problem: Problem, form: SourceForm) -> Problem:
    return replace(problem, row=problem.line, line=None) if form.rows_are_numbered else problem


class _Columns:
    """Gives the columns of a source the names of a manifest, and takes apart prompts that end with references."""

    def __init__(self, prompt_column: str | None) -> None:
        self._prompt_column = prompt_column
        self._names: dict[str, str] = {}
        self._unnamed = False

    def name(self, column: str) -> str:
        """Returns what a column of the source is called in the manifest."""
        if column not in self._names:
            plain = column.strip().lower()
            if column == self._prompt_column:
                self._names[column] = "prompt"
            else:
                self._names[column] = plain if plain in ROW_COLUMNS else column
        return self._names[column]

    def named(self, lines: Iterator[Line], form: SourceForm) -> Iterator[Line]:
        """Yields the lines with the manifest's columns."""
        for number, cells in lines:
            if isinstance(cells, Problem):
                yield number, cells
                continue
            try:
                yield number, self._row(cells)
            except ValueError as error:
                problem = Problem(
                    line=number,
                    column="prompt",
                    value=shown(next((v for c, v in cells.items() if self.name(c) == "prompt"), None)),
                    allowed=str(error),
                    action="fix the line, or name the files in columns references and mask_strategy",
                )
                yield number, _numbered(problem, form)

    def _row(self, cells: Cells) -> Cells:
        row: dict[str, object] = {}
        for column, value in cells.items():
            if column == "":
                self._unnamed = True
                continue
            name = self.name(column)
            if name in row:
                raise ValueError(f"columns {shown(name)} and {shown(column)} are both read as {name!r}; rename one")
            row[name] = value
        prompt = row.get("prompt")
        split = split_suffix(prompt) if isinstance(prompt, str) else None
        if split is not None:
            if row.get("references") is not None or row.get("mask_strategy") is not None:
                raise ValueError("its end names references, and so do the row's columns; keep one of them")
            said = {"references": split.references, "mask_strategy": split.mask_strategy}
            row |= {"prompt": split.prompt, **{name: value for name, value in said.items() if value is not None}}
        return row

    def warnings(self) -> tuple[str, ...]:
        """Returns what was read in another way than it was written."""
        renamed = [
            f"column {column!r} is read as {name!r}" for column, name in self._names.items() if column.strip() != name
        ]
        return (*renamed, *(["the column without a name is left out"] if self._unnamed else []))


def _check_header(source: str, header: Sequence[str], columns: _Columns) -> None:
    cells = [cell.strip() for cell in header]
    names = [columns.name(cell) for cell in cells]
    problems = []
    if "prompt" not in names:
        action = "add a header and prompts"
        if cells:
            found = ", ".join(shown(cell) for cell in cells[:_MOST_SHOWN])
            action = (
                f"name the columns in the first line, or say which of the columns found ({found}) it is: "
                "--prompt-column NAME (and what divides them: --delimiter)"
            )
        problems.append(Problem(line=1, column="prompt", allowed="the column is required and missing", action=action))
    if "" in cells[1:]:
        at = cells.index("", 1) + 1
        problems.append(Problem(line=1, allowed=f"column {at} has no name", action="name it or drop it"))
    problems += [
        Problem(line=1, column=name, allowed="the column is there more than once", action="drop all but one")
        for name in sorted({name for name in names if name and names.count(name) > 1})
    ]
    if problems:
        raise ManifestError(source, problems)


def _target(source: str, destination: Path, *, overwrite: bool) -> Path:
    """Returns the file to write, through links. Raises ManifestError for the source itself, and for a file that is there."""
    target = Path(os.path.realpath(destination))
    path = Path(source.removeprefix("file://"))
    try:
        same = path.exists() and (path.resolve() == target or (target.exists() and path.samefile(target)))
    except (OSError, ValueError):
        same = False  # the source is no local file
    if same:
        allowed = f"it is the source itself ({source})"
        raise ManifestError(str(destination), [Problem(allowed=allowed, action="name another file for the manifest")])
    if target.is_dir():
        raise ManifestError(str(destination), [Problem(allowed="it is a folder", action="name a file in it")])
    if target.exists() and not overwrite:
        raise _exists(destination)
    return target


def _exists(destination: Path) -> ManifestError:
    action = "name another file, or replace it with --overwrite"
    return ManifestError(str(destination), [Problem(allowed="the file exists", action=action)])


def _write(target: Path, schema: pa.Schema, lines: Iterator[Line], *, overwrite: bool) -> None:
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("xb") as stream:
            with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
                for rows in _chunks(lines):
                    arrays = [
                        pa.array([converted(row.get(field.name), field) for row in rows], field.type)
                        for field in schema
                    ]
                    writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            stream.flush()
            os.fsync(stream.fileno())
        _publish(part, target, overwrite=overwrite)
    except OSError as error:
        allowed = f"it cannot be written ({error.strerror or error})"
        raise ManifestError(str(target), [Problem(allowed=allowed, action="check folder and access")]) from error
    finally:
        part.unlink(missing_ok=True)


def _publish(part: Path, target: Path, *, overwrite: bool) -> None:
    if overwrite:
        part.replace(target)
        return
    try:
        # Unlike a rename, a link does not replace a file that somebody has made meanwhile.
        target.hardlink_to(part)
    except FileExistsError as error:
        raise _exists(target) from error
    except OSError:  # a file system without links
        if target.exists():
            raise _exists(target) from None
        part.replace(target)


def _chunks(lines: Iterator[Line]) -> Iterator[list[Cells]]:
    """Yields rows together, by their number and by how much text they hold."""
    rows: list[Cells] = []
    held = 0
    for _, cells in lines:
        if isinstance(cells, Problem):
            continue
        rows.append(cells)
        held += sum(len(value) if isinstance(value, str) else 50 for value in cells.values())
        if len(rows) == _CHUNK_LINES or held > _CHUNK_CHARS:
            yield rows
            rows, held = [], 0
    if rows:
        yield rows
