"""Reading a manifest from any fsspec URL as a stream of record batches: never the whole file in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Self

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.clip import Clip
from manifests.errors import ManifestError, Problem, shown
from manifests.pages import (
    MAX_PAGE_BYTES,
    MAX_TEXT_BYTES,
    MAX_TEXT_PAGE_BYTES,
    BadPageError,
    ColumnPages,
    LargePageError,
    read_pages,
)
from manifests.schema import CLIP_SCHEMA, ROW_COLUMNS, check_schema, clip_columns

BATCH_ROWS = 131_072
BATCH_BYTES = 64 << 20
"""A batch has at most this many rows and, by the mean of the file, about this many bytes."""
SMALL_BYTES = 1 << 10
MOST_BATCH_BYTES = 256 << 20
"""What the pages of no batch may exceed, wherever in the file its rows are. A batch of one row may."""

_READ_BYTES = 4 << 20
_DAMAGED = "the file is damaged"
_OURS = frozenset(ROW_COLUMNS)
_LEADS_ELSEWHERE = r"[/\\\x00-\x1f]|\A\.{0,2}\z"


class ManifestFile:
    """An open Parquet manifest. A context manager; `name` is what messages call it."""

    def __init__(self, name: str, stream: BinaryIO) -> None:
        self.name = name
        self._stream = stream
        self._pages: dict[tuple[int, int], ColumnPages] = {}
        try:
            # Without pre_buffer a column is read in pieces, so one huge row group does not fill the memory.
            self._parquet = pq.ParquetFile(stream, pre_buffer=False, buffer_size=_READ_BYTES)
        except (pa.ArrowInvalid, OSError) as error:
            stream.close()
            allowed = f"the file is not Parquet ({_first_line(error)})"
            action = "build one from CSV, JSONL or text with `python -m pipeline manifest build`"
            raise ManifestError(name, [Problem(allowed=allowed, action=action)]) from error

    @property
    def num_rows(self) -> int:
        """Number of rows, from the footer."""
        return int(self._parquet.metadata.num_rows)

    @property
    def num_row_groups(self) -> int:
        """Number of row groups, from the footer."""
        return int(self._parquet.metadata.num_row_groups)

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema as it is in the file."""
        return self._parquet.schema_arrow

    def row_group_starts(self) -> np.ndarray:
        """Returns the first row of every row group and, last, the number of rows: int64 [num_row_groups + 1]."""
        metadata = self._parquet.metadata
        rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        return np.concatenate([[0], np.cumsum(rows, dtype=np.int64)]).astype(np.int64)

    def row_bytes(self, columns: Sequence[str] | None = None) -> float:
        """Returns the mean size of a row (of these columns) in memory, roughly: from the uncompressed sizes in the footer."""
        metadata = self._parquet.metadata
        groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
        chunks = (group.column(i) for group in groups for i in range(group.num_columns))
        wanted = (chunk for chunk in chunks if columns is None or chunk.path_in_schema.partition(".")[0] in columns)
        return float(sum(chunk.total_uncompressed_size for chunk in wanted)) / max(1, self.num_rows)

    def iter_batches(
        self,
        columns: Sequence[str] | None = None,
        *,
        row_groups: Sequence[int] | None = None,
        batch_rows: int | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Yields batches in the file's order. Raises ManifestError if it is damaged.

        `batch_rows`: the most rows of a batch, by default BATCH_ROWS and fewer where rows are large. Also raises
        ManifestError, before a value is read, where a page is so large that values would fill the memory.
        """
        if batch_rows is None:
            batch_rows = max(1, min(BATCH_ROWS, int(BATCH_BYTES / max(1.0, self.row_bytes(columns)))))
        batch_rows = self._bounded(batch_rows, columns, row_groups)
        batches = self._parquet.iter_batches(batch_size=batch_rows, row_groups=row_groups, columns=columns)
        try:
            yield from batches
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            problem = Problem(allowed=f"{_DAMAGED} ({_first_line(error)})", action="write it again")
            raise ManifestError(self.name, [problem]) from error

    def _bounded(self, batch_rows: int, columns: Sequence[str] | None, row_groups: Sequence[int] | None) -> int:
        """Returns how many rows of a batch, `batch_rows` at most, are sure to fit into MOST_BATCH_BYTES."""
        for group in range(self.num_row_groups) if row_groups is None else row_groups:
            chunks = [
                (self._column_pages(group, at), self._largest(group, at))
                for at in range(self._parquet.metadata.num_columns)
                if columns is None or self._column(at) in columns
            ]
            while (
                batch_rows > 1
                and sum(
                    pages.window_bytes(batch_rows) + batch_rows * max(pages.repeats, largest)
                    for pages, largest in chunks
                )
                > MOST_BATCH_BYTES
            ):
                batch_rows //= 2
        return batch_rows

    def _column(self, at: int) -> str:
        return str(self._parquet.schema.column(at).path).partition(".")[0]

    def _column_pages(self, group: int, at: int) -> ColumnPages:
        if (group, at) not in self._pages:
            name, chunk = self._column(at), self._parquet.metadata.row_group(group).column(at)
            start = chunk.data_page_offset
            if chunk.has_dictionary_page and chunk.dictionary_page_offset:
                start = min(start, chunk.dictionary_page_offset)
            most = MAX_TEXT_PAGE_BYTES if name in _OURS else MAX_PAGE_BYTES
            size, count = chunk.total_compressed_size, chunk.num_values
            try:
                self._pages[group, at] = read_pages(self._stream, start, size, most_bytes=most, num_values=count)
            except LargePageError as error:
                raise self._too_large(group, at, error) from error
            except (BadPageError, OSError) as error:
                problem = Problem(column=name, allowed=f"{_DAMAGED} ({_first_line(error)})", action="write it again")
                raise ManifestError(self.name, [problem]) from error
        return self._pages[group, at]

    def _too_large(self, group: int, at: int, error: LargePageError) -> ManifestError:
        first = int(self.row_group_starts()[group])
        last = first + self._parquet.metadata.row_group(group).num_rows - 1
        if self._parquet.schema.column(at).max_repetition_level == 0:
            first, last = first + error.first, min(last, first + error.last)
        rows = "its value has" if first == last else f"rows {first} to {last} have"
        return ManifestError(
            self.name,
            [
                Problem(
                    row=first,
                    column=self._column(at),
                    allowed=f"{rows} {error}",
                    action="shorten the values, or write the file with smaller pages",
                )
            ],
        )

    def _largest(self, group: int, at: int) -> int:
        """Returns the bytes of the largest value in a column's dictionary, which every row may name; 0 if it is small."""
        size = self._column_pages(group, at).dictionary_bytes
        if size <= SMALL_BYTES or self._parquet.schema.column(at).physical_type != "BYTE_ARRAY":
            return 0
        if self._parquet.schema.column(at).max_repetition_level:
            return size
        found = self._largest_in_dictionary(group, self._parquet.schema.column(at).path, size)
        if found > MAX_TEXT_BYTES and self._column(at) in _OURS:
            rows = int(self._parquet.metadata.row_group(group).num_rows)
            told = f"{found:,} bytes in one value, at most {MAX_TEXT_BYTES:,} are read"
            raise self._too_large(group, at, LargePageError(told, 0, rows - 1))
        return found

    def _largest_in_dictionary(self, group: int, name: str, size: int) -> int:
        encoded = pq.ParquetFile(self._stream, read_dictionary=[name], pre_buffer=False, buffer_size=_READ_BYTES)
        try:
            for batch in encoded.iter_batches(batch_size=1, row_groups=[group], columns=[name]):
                values = batch.column(0)
                if not pa.types.is_dictionary(values.type):
                    return size
                return int(pc.max(pc.binary_length(values.dictionary.cast(pa.large_binary()))).as_py() or 0)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError):
            pass  # reading the values says what is wrong
        return size

    def close(self) -> None:
        """Closes the file."""
        self._parquet.close()
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_manifest(url: str, *, name: str | None = None) -> ManifestFile:
    """Opens a Parquet manifest for streaming.

    `url` is a path or any fsspec URL; `name` is what messages call it. Only the footer is read here.
    Raises ManifestError if the file is missing, cannot be read or is not Parquet.
    """
    # Parquet reads several columns side by side in pieces of its own: a read-ahead would fetch most bytes twice.
    return ManifestFile(name or url, open_source(url))


def open_source(url: str, *, cache_type: str = "none") -> BinaryIO:
    """Opens `url` for reading bytes, or raises ManifestError that says why not. `cache_type` is fsspec's."""
    try:
        file_system, path = fsspec.url_to_fs(url)
        stream: BinaryIO = file_system.open(path, "rb", cache_type=cache_type)
    except FileNotFoundError as error:
        raise _unreadable(url, "the file does not exist", "check the path") from error
    except IsADirectoryError as error:
        raise _unreadable(url, "a folder is not a manifest", "name one file") from error
    except (OSError, ImportError, ValueError) as error:
        raise _unreadable(url, f"the file cannot be read ({_first_line(error)})", "check URL and access") from error
    return stream


def read_clips(file: BinaryIO | str) -> list[Clip]:
    """Reads a shard: an accepted manifest small enough to be a list. `file` is an open binary file or an fsspec URL.

    Raises ManifestError if it is not one of ours (another version, missing columns) or damaged.
    """
    return list(iter_clips(file))


def iter_clips(file: BinaryIO | str, *, batch_rows: int | None = None) -> Iterator[Clip]:
    """Yields the clips of an accepted manifest in order, read as far as they are taken. Raises what `read_clips` does."""
    name = file if isinstance(file, str) else str(getattr(file, "name", "shard"))
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(open_source(file)) if isinstance(file, str) else file
        manifest = ManifestFile(name, stream)
        missing = [column for column in CLIP_SCHEMA.names if column not in manifest.schema.names]
        problems = check_schema(manifest.schema) + [
            Problem(column=column, allowed="the column of an accepted manifest is missing", action="submit again")
            for column in missing
        ]
        if problems:
            raise ManifestError(name, problems)
        for batch in manifest.iter_batches(clip_columns(manifest.schema), batch_rows=batch_rows):
            _check_names(name, batch)
            yield from map(_clip, batch.to_pylist())


def read_keys(file: BinaryIO | str) -> Iterator[str]:
    """Yields `<clip_id>.<digest>` of every row of an accepted manifest. Raises ManifestError if it is damaged, or none."""
    name = file if isinstance(file, str) else "manifest"
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(open_source(file)) if isinstance(file, str) else file
        manifest = ManifestFile(name, stream)
        columns = ["clip_id", "digest"]
        if missing := [column for column in columns if column not in manifest.schema.names]:
            allowed = "the column of an accepted manifest is missing"
            raise ManifestError(name, [Problem(column=missing[0], allowed=allowed, action="submit again")])
        for batch in manifest.iter_batches(columns):
            ids, digests = (batch.column(column).to_pylist() for column in columns)
            yield from (f"{clip_id}.{digest}" for clip_id, digest in zip(ids, digests, strict=True))


def _check_names(name: str, batch: pa.RecordBatch) -> None:
    """Refuses names that would lead a job to files outside of its run: who can write to the bucket can write a shard."""
    for column in ("clip_id", "digest"):
        bad = pc.match_substring_regex(batch.column(column), _LEADS_ELSEWHERE)
        if pc.any(bad).as_py():
            value = shown(batch.column(column).filter(bad)[0].as_py())
            allowed = "no accepted manifest has such a name; somebody else wrote this file"
            raise ManifestError(name, [Problem(column=column, value=value, allowed=allowed, action="submit again")])


def _clip(row: dict[str, Any]) -> Clip:
    for name in ("references", "reference_digests"):
        row[name] = tuple(row.get(name) or ())
    return Clip(**row)


def _unreadable(url: str, what: str, action: str) -> ManifestError:
    return ManifestError(url, [Problem(allowed=what, action=action)])


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
