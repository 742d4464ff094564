"""Making a Parquet manifest from what people have: types are converted, rows are shaped, every bad line is in one error.

The source is read twice, once to find its columns and every bad line and once to convert, so that memory stays bounded.
What the families allow is checked later, when the manifest is accepted.
"""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.alikes import column_warnings
from manifests.convert import Cell, Cells, cell_problems, column_type, converted
from manifests.errors import ManifestError, Problem, ProblemLog
from manifests.schema import ROW_COLUMNS, VERSION_KEY, version
from manifests.shaping import Shaping
from manifests.sources.columns import FramesOf
from manifests.sources.files import SourceFile, source_files, source_name
from manifests.sources.lines import MAX_COLUMNS
from manifests.sources.options import SourceOptions
from manifests.sources.source import Source

__all__ = ["BuiltManifest", "build"]
_CHUNK_LINES = 20_000
_CHUNK_CHARS = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltManifest:
    """What `build` has made, of `num_source_rows` rows. `warnings`: sentences for the user."""

    num_rows: int
    num_source_rows: int
    num_files: int
    columns: tuple[str, ...]
    warnings: tuple[str, ...]


def build(
    sources: str | Sequence[str],
    destination: str | os.PathLike[str],
    *,
    options: SourceOptions | None = None,
    shaping: Shaping | None = None,
    errors_path: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    frames_of: FramesOf | None = None,
    stdin: BinaryIO | None = None,
) -> BuiltManifest:
    """Makes the Parquet manifest `destination` (a local path) from files, folders and patterns at any fsspec URL.

    A source is Parquet, CSV with a header (an empty cell is null), a JSON document, JSON lines, or text with a prompt a line
    (blank lines are left out); how it is packed and which of these it is, is looked at. Names of our columns may be written
    in any case. Unknown columns are kept: as strings from CSV, else as the type of their values (as JSON text where those
    differ or are nested). `options`: what looking cannot find. `shaping`: what is added to rows. `overwrite`: whether an
    existing destination is replaced; a source never is. `errors_path`: where all problems are listed, by default
    `<name of the source>.errors.jsonl` in the current folder. `frames_of`: for columns of seconds, with `map_alikes`.
    `stdin`: what `-` means. Raises ManifestError that names every bad line.
    """
    given = [sources] if isinstance(sources, str) else list(sources)
    shaping = shaping or Shaping()
    name = source_name(given)
    with source_files(given, stdin) as files:
        target = _target(files, Path(destination), overwrite=overwrite)
        source = Source(name, files, options or SourceOptions(), frames_of)
        log_path = Path(f"{PurePosixPath(name).name}.errors.jsonl" if errors_path is None else errors_path)
        taken = shaping.taken(sum(1 for _ in source.rows())) if shaping.sample is not None else None
        with ProblemLog(name, log_path) as log:
            checked = _Checked(source, shaping, taken)
            log.extend(checked.problems())
            log.raise_if_any()
        if not checked.num_rows:
            raise ManifestError(name, [Problem(allowed="the file has no prompts", action="add at least one")])
        schema = checked.schema()
        _write(target, schema, checked.clips(), overwrite=overwrite)
    there = schema.names
    warnings = (*source.warnings(), *checked.warnings(), *column_warnings(schema))
    return BuiltManifest(
        num_rows=checked.num_rows * shaping.clips_of_a_row,
        num_source_rows=checked.num_rows,
        num_files=len(files),
        columns=tuple(there),
        warnings=warnings,
    )


class _Checked:
    """The rows that are taken of a source. `problems` looks at all of them first, and then `clips` yields them shaped."""

    def __init__(self, source: Source, shaping: Shaping, taken: frozenset[int] | None) -> None:
        self._source, self._shaping, self._taken = source, shaping, taken
        self._types: dict[str, pa.DataType] = {}
        self._kept_own: Counter[str] = Counter()
        self.num_rows = 0

    def _rows(self) -> Iterator[tuple[tuple[int, int], Cells | Problem]]:
        for at, row in enumerate(self._source.rows()):
            if at == self._shaping.limit:
                return
            if self._taken is None or at in self._taken:
                yield row

    def problems(self) -> Iterator[Problem]:
        """Yields what is wrong with rows, and finds their number, columns and types."""
        types, settled = self._types, set[str]()
        for where, cells in self._rows():
            if isinstance(cells, Problem):
                yield cells
                continue
            self.num_rows += 1
            for name in self._shaping.defaults:
                self._kept_own[name] += cells.get(name) is not None
            for problem in cell_problems(where[1], cells):
                yield self._source.placed(problem, where)
            try:
                first = next(self._shaping.shaped(cells))
            except ValueError as error:
                yield self._source.placed(Problem(allowed=str(error), action="fix the line or the flag"), where)
                continue
            for column, value in first.items():
                # What is a string once stays one, and our own columns have one type.
                if column not in settled:
                    types[column] = column_type(column, value, types.get(column))
                    if column in ROW_COLUMNS or types[column] == pa.string():
                        settled.add(column)
            if len(types) > MAX_COLUMNS:
                allowed = f"the rows have more than {MAX_COLUMNS} columns"
                problem = self._source.placed(Problem(allowed=allowed, action="drop some"), where)
                raise ManifestError(self._source.name, [problem])

    def schema(self) -> pa.Schema:
        """Returns the schema of the manifest."""
        fields = [
            pa.field(name, pa.string() if pa.types.is_null(type_) else type_) for name, type_ in self._types.items()
        ]
        schema = pa.schema(fields)
        return schema.with_metadata({VERSION_KEY: version(schema).encode()})

    def clips(self) -> Iterator[Cells]:
        """Yields the clips of all rows."""
        for _, cells in self._rows():
            if not isinstance(cells, Problem):
                yield from self._shaping.shaped(cells)

    def warnings(self) -> tuple[str, ...]:
        """Returns which settings for all rows some rows do not take."""
        return tuple(
            f"{name}: {count:,} of {self.num_rows:,} rows have their own, which stays; --set {name}=... sets it in all"
            for name, count in self._kept_own.items()
            if count
        )


def _target(files: Sequence[SourceFile], destination: Path, *, overwrite: bool) -> Path:
    """Returns the file to write, through links. Raises ManifestError for a source itself, and for a file that is there."""
    target = Path(os.path.realpath(destination))
    for file in files:
        path = Path(file.url.removeprefix("file://"))
        try:
            same = path.exists() and (path.resolve() == target or (target.exists() and path.samefile(target)))
        except (OSError, ValueError):
            same = False  # the source is no local file
        if same:
            allowed = f"it is the source itself ({file.name})"
            raise ManifestError(
                str(destination), [Problem(allowed=allowed, action="name another file for the manifest")]
            )
    if target.is_dir():
        raise ManifestError(str(destination), [Problem(allowed="it is a folder", action="name a file in it")])
    if target.exists() and not overwrite:
        raise _exists(destination)
    return target


def _exists(destination: Path) -> ManifestError:
    action = "name another file, or replace it with --force"
    return ManifestError(str(destination), [Problem(allowed="the file exists", action=action)])


def _write(target: Path, schema: pa.Schema, clips: Iterator[Cells], *, overwrite: bool) -> None:
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("xb") as stream:
            with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
                for rows in _chunks(clips):
                    arrays = [_array([row.get(field.name) for row in rows], field) for field in schema]
                    writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            stream.flush()
            os.fsync(stream.fileno())
        _publish(part, target, overwrite=overwrite)
    except OSError as error:
        allowed = f"it cannot be written ({error.strerror or error})"
        raise ManifestError(str(target), [Problem(allowed=allowed, action="check folder and access")]) from error
    finally:
        part.unlink(missing_ok=True)


def _array(values: list[Cell], field: pa.Field) -> pa.Array:
    if not pa.types.is_list(field.type):
        try:
            return pa.array(values, field.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            pass  # some are of another type, and are converted one by one
    return pa.array([converted(value, field) for value in values], field.type)


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


def _chunks(clips: Iterator[Cells]) -> Iterator[list[Cells]]:
    """Yields rows together, by their number and by how much text they hold."""
    rows: list[Cells] = []
    held = 0
    for cells in clips:
        rows.append(cells)
        held += sum(len(value) if isinstance(value, str) else 50 for value in cells.values())
        if len(rows) == _CHUNK_LINES or held > _CHUNK_CHARS:
            yield rows
            rows, held = [], 0
    if rows:
        yield rows
