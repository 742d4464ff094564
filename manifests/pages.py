"""How much memory the values of a Parquet file need, read from the headers of its pages before any value is.

A file of some kilobytes may hold a value of gigabytes, and what its footer says of sizes need not be true. Pages are what a
reader unpacks, each whole, so their headers are what counts (Parquet's format: `PageHeader`, in Thrift's compact protocol).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

MAX_TEXT_PAGE_BYTES = 128 << 20
"""Of a column that is read here. Writers make pages of 1 MB, some of 100 MB."""
MAX_PAGE_BYTES = 256 << 20
"""Of a column that is only kept."""
MAX_PAGE_VALUES = 1 << 26
MAX_TEXT_BYTES = 256 << 10
"""Of a value in a dictionary of a column that is read here: each of millions of rows may name it."""

_DICTIONARY = 2
_DELTA_BYTE_ARRAY = 7
_WHOLE_BYTES = 4 << 20
"""A column of this size is read in one piece to find its headers: each request to a store takes long."""
_HEADER_BYTES = (1 << 10, 1 << 16, 1 << 20)
_MOST_DEPTH = 6
_STRUCT = 12

Fields = dict[int, "int | Fields"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnPages:
    """The pages of one column of one row group.

    `starts`: the first value of each data page and, last, how many there are: int64 [pages + 1]. `sizes`: bytes of each data
    page when unpacked, int64 [pages]. `dictionary_bytes`: of the dictionary, 0 if there is none. `repeats`: bytes that one
    value may need although the pages do not hold them once more (values that begin like the one before).
    """

    starts: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    dictionary_bytes: int
    repeats: int

    def window_bytes(self, num_values: int) -> int:
        """Returns the most bytes of pages that any `num_values` values in a row need."""
        if not len(self.sizes):
            return 0
        before = np.concatenate([[0], np.cumsum(self.sizes)])
        last = np.minimum(np.searchsorted(self.starts, self.starts[:-1] + num_values, "left") + 1, len(self.sizes))
        return int((before[last] - before[:-1]).max())


class BadPageError(ValueError):
    """The headers of a column's pages cannot be read."""


class LargePageError(ValueError):
    """A page needs more memory than is given to it. `first`, `last`: its values."""

    def __init__(self, found: str, first: int, last: int) -> None:
        super().__init__(found)
        self.first = first
        self.last = last


def read_pages(stream: BinaryIO, start: int, size_bytes: int, *, most_bytes: int, num_values: int) -> ColumnPages:
    """Reads the headers of the pages of a column that lies in `size_bytes` bytes from `start`.

    Raises LargePageError for a page of more than `most_bytes` or too many values, BadPageError for what is no page.
    """
    starts, sizes = [0], list[int]()
    dictionary_bytes = repeats = 0
    for kind, unpacked, count, encoding in _headers(stream, start, size_bytes):
        dictionary = kind == _DICTIONARY
        if unpacked > most_bytes or count > MAX_PAGE_VALUES:
            found = f"{unpacked / 1e6:,.0f} MB" if unpacked > most_bytes else f"{count:,} values"
            allowed = f"{most_bytes / 1e6:,.0f} MB" if unpacked > most_bytes else f"{MAX_PAGE_VALUES:,}"
            last = num_values if dictionary else starts[-1] + count
            raise LargePageError(f"{found} in one page, at most {allowed} are read", starts[-1], max(0, last - 1))
        if dictionary:
            dictionary_bytes = max(dictionary_bytes, unpacked)
            continue
        starts.append(starts[-1] + count)
        sizes.append(unpacked)
        repeats = max(repeats, unpacked if encoding == _DELTA_BYTE_ARRAY else 0)
        if starts[-1] >= num_values:
            break
    return ColumnPages(
        starts=np.array(starts, np.int64),
        sizes=np.array(sizes, np.int64),
        dictionary_bytes=dictionary_bytes,
        repeats=repeats,
    )


def _headers(stream: BinaryIO, start: int, size_bytes: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields kind, unpacked bytes, number of values and encoding of each page."""
    whole = _read(stream, start, size_bytes) if size_bytes <= _WHOLE_BYTES else None
    at = 0
    while at < size_bytes:
        fields, length = _header(stream, start, at, whole)
        kind, unpacked, packed = (_number(fields, number) for number in (1, 2, 3))
        inner = next((found for number in (5, 7, 8) if isinstance(found := fields.get(number), dict)), {})
        if unpacked < 0 or packed < 0:
            raise BadPageError("a page of negative size")
        yield kind, unpacked, max(0, _number(inner, 1)) if inner else 0, _encoding(fields, inner)
        at += length + packed


def _encoding(fields: Fields, inner: Fields) -> int:
    return _number(inner, 4 if 8 in fields else 2) if inner else 0


def _number(fields: Fields, number: int) -> int:
    found = fields.get(number)
    if not isinstance(found, int):
        raise BadPageError(f"a page without field {number}")
    return found


def _header(stream: BinaryIO, start: int, at: int, whole: bytes | None) -> tuple[Fields, int]:
    if whole is not None:
        return _parsed(whole, at)
    for size in _HEADER_BYTES:
        data = _read(stream, start + at, size)
        try:
            return _parsed(data, 0)
        except BadPageError:
            if len(data) < size or size == _HEADER_BYTES[-1]:
                raise
    raise AssertionError("the loop ends by return or raise")


def _parsed(data: bytes, at: int) -> tuple[Fields, int]:
    try:
        fields, end = _struct(data, at, 0)
    except IndexError as error:
        raise BadPageError("a header without an end") from error
    return fields, end - at


def _read(stream: BinaryIO, start: int, size: int) -> bytes:
    stream.seek(start)
    return stream.read(size)


def _struct(data: bytes, at: int, depth: int) -> tuple[Fields, int]:
    if depth > _MOST_DEPTH:
        raise BadPageError("a header of too many levels")
    fields: Fields = {}
    number = 0
    while data[at]:
        step, kind = data[at] >> 4, data[at] & 15
        at += 1
        if step:
            number += step
        else:
            number, at = _integer(data, at)
        value, at = _value(data, at, kind, depth)
        if value is not None:
            fields[number] = value
    return fields, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[int | Fields | None, int]:
    if kind in (1, 2):  # true, false
        return None, at
    if kind == 3:
        return data[at], at + 1
    if kind in (4, 5, 6):
        return _integer(data, at)
    if kind == 7:
        return None, at + 8
    if kind == 8:
        size, at = _varint(data, at)
        return None, at + size
    if kind in (9, 10):
        size, inner = data[at] >> 4, data[at] & 15
        at += 1
        if size == 15:
            size, at = _varint(data, at)
        for _ in range(size):
            # A truth value of a list has a byte of its own.
            at = at + 1 if inner in (1, 2) else _value(data, at, inner, depth + 1)[1]
        return None, at
    if kind == _STRUCT:
        return _struct(data, at, depth + 1)
    raise BadPageError(f"a field of type {kind}")


def _integer(data: bytes, at: int) -> tuple[int, int]:
    raw, at = _varint(data, at)
    return (raw >> 1) ^ -(raw & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
        shift += 7
        if shift > 63:
            raise BadPageError("a number of too many bytes")
