"""Finding the few distinct combinations of several columns, so that work is done per combination and not per row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_MOST_CODES = 2**31

Indices = npt.NDArray[np.int64]


def distinct_rows(columns: Sequence[pa.Array]) -> tuple[Indices, Indices]:
    """Finds the distinct combinations of `columns` (at least one, of equal length); nulls are a value of their own.

    Returns the first row of each combination, int64 [combinations] in ascending order, and the combination of each row,
    int64 [rows].
    """
    num_rows = len(columns[0])
    codes, num_codes = np.zeros(num_rows, np.int64), 1
    for column in columns:
        if column.null_count == num_rows:
            continue
        encoded = pc.dictionary_encode(column, null_encoding="encode")
        if len(encoded.dictionary) == 1:
            continue
        codes = codes * len(encoded.dictionary) + encoded.indices.to_numpy()
        num_codes *= len(encoded.dictionary)
        if num_codes > _MOST_CODES:
            codes, num_codes = _renumbered(codes)
    codes, num_codes = _renumbered(codes)
    first = np.empty(num_codes, np.int64)
    first[codes[::-1]] = np.arange(num_rows - 1, -1, -1)
    return first, codes


def rows_of(codes: Indices, wanted: Sequence[int]) -> list[Indices]:
    """Returns the rows of each wanted combination, ascending. `codes`: the combination of each row."""
    order = np.argsort(codes, kind="stable")
    ranked = codes[order]
    starts, ends = np.searchsorted(ranked, wanted, "left"), np.searchsorted(ranked, wanted, "right")
    return [order[start:end] for start, end in zip(starts, ends, strict=True)]


def _renumbered(codes: Indices) -> tuple[Indices, int]:
    encoded = pa.array(codes).dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), len(encoded.dictionary)
