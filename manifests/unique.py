"""Telling ten million clip ids apart without ten million Python strings: 64-bit hashes in sorted numpy arrays."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Words = npt.NDArray[np.uint64]

_KEY_CHUNK = 65_536
_ODD = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
# The low 0..8 bytes of a little-endian word: what of a word belongs to a string that ends in it.
_LOW_BYTES = np.array([(1 << (8 * size)) - 1 for size in range(9)], dtype=np.uint64)


def string_hashes(strings: pa.Array) -> Words:
    """Hashes strings to uint64 [rows], eight bytes of every row at a time; not cryptographic. Nulls hash like ""."""
    strings = pc.fill_null(strings, "") if strings.null_count else strings
    num_rows = len(strings)
    _, offset_buffer, data_buffer = strings.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32)[strings.offset : strings.offset + num_rows + 1].astype(np.int64)
    start, end = (int(offsets[0]), int(offsets[-1])) if num_rows else (0, 0)
    data = np.zeros(end - start + 8, np.uint8)
    if end > start:
        data[:-8] = np.frombuffer(data_buffer, np.uint8)[start:end]
    word_at = np.ndarray((end - start + 1,), np.dtype("<u8"), data, strides=(1,))
    first, lengths = offsets[:-1] - start, np.diff(offsets)
    hashes = _mixed(lengths.astype(np.uint64) + _ODD[0])
    whole_words = int(lengths.min(initial=0)) // 8 * 8
    for begin in range(0, whole_words, 8):
        hashes = _mixed((hashes ^ word_at[first + begin]) * _ODD[0] + _ODD[1])
    for begin in range(whole_words, int(lengths.max(initial=0)), 8):
        rows = np.flatnonzero(lengths > begin)
        low = _LOW_BYTES[np.minimum(lengths[rows] - begin, 8)]
        hashes[rows] = _mixed((hashes[rows] ^ (word_at[first[rows] + begin] & low)) * _ODD[0] + _ODD[1])
    return hashes


def _mixed(words: Words) -> Words:
    # The finalizer of splitmix64: every bit of the input moves every bit of the output.
    words = words ^ (words >> np.uint64(30))
    words *= _ODD[1]
    words ^= words >> np.uint64(27)
    words *= _ODD[2]
    words ^= words >> np.uint64(31)
    return words


class Repetitions:
    """Counts how often each hash came before, over a stream of batches. Holds 8 bytes per row."""

    def __init__(self) -> None:
        self._runs: list[Words] = []

    def count(self, hashes: Words) -> npt.NDArray[np.int64]:
        """Returns for each row how many equal hashes came earlier, in this batch or before: int64 [rows]."""
        order = np.argsort(hashes, kind="stable")
        run = hashes[order]
        starts = np.flatnonzero(np.concatenate([[True], run[1:] != run[:-1]])) if len(run) else np.empty(0, np.int64)
        earlier = np.arange(len(run)) - np.repeat(starts, np.diff(np.append(starts, len(run))))
        for past in self._runs:
            earlier += np.searchsorted(past, run, "right") - np.searchsorted(past, run, "left")
        self._add(run)
        counts = np.empty(len(run), np.int64)
        counts[order] = earlier
        return counts

    def _add(self, run: Words) -> None:
        # Runs double in size, so each hash is merged about log2(batches) times and few runs are searched.
        self._runs.append(run)
        while len(self._runs) > 1 and 2 * len(self._runs[-1]) > len(self._runs[-2]):
            last = self._runs.pop()
            self._runs[-1] = np.sort(np.concatenate([self._runs[-1], last]), kind="stable")


def repeated(hashes: Words) -> Words:
    """Returns the hashes that occur more than once, sorted and each once. Sorts `hashes` in place."""
    hashes.sort()
    return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])


def duplicates(batches: Iterable[tuple[pa.Array, int]], suspects: Words) -> Iterator[tuple[int, str, int]]:
    """Yields (row, clip_id, first row with it) for every clip_id that came before, in upper or lower case.

    `batches`: clip ids and the row of their first. `suspects`: the sorted hashes of lower-case ids that came twice, so that
    only ids with such a hash are compared; equal hashes of different ids are no duplicates.
    """
    ids: list[pa.Array] = []
    rows: list[npt.NDArray[np.int64]] = []
    for clip_ids, first_row in batches:
        found = np.flatnonzero(is_member(string_hashes(pc.ascii_lower(clip_ids)), suspects))
        ids.append(clip_ids.take(pa.array(found)))
        rows.append(found + first_row)
    if not ids:
        return
    all_rows = np.concatenate(rows)
    given = pa.chunked_array(ids).combine_chunks()
    codes = pc.ascii_lower(given).dictionary_encode()
    indices = codes.indices.to_numpy(zero_copy_only=False)
    first = np.full(len(codes.dictionary), np.iinfo(np.int64).max)
    np.minimum.at(first, indices, all_rows)
    for at, (row, code) in enumerate(zip(all_rows, indices, strict=True)):
        if row != first[code]:
            yield int(row), given[at].as_py(), int(first[code])


def is_member(hashes: Words, members: Words) -> npt.NDArray[np.bool_]:
    """Says which of `hashes` are in the sorted `members`: bool [rows]."""
    if not len(members):
        return np.zeros(len(hashes), bool)
    found: npt.NDArray[np.bool_] = members[_places(members, hashes)] == hashes
    return found


def _places(members: Words, hashes: Words) -> npt.NDArray[np.int64]:
    """Returns where each hash is in the sorted `members` (not empty) if it is there: int64 [rows]."""
    # Sorted questions walk through memory in one direction: several times faster than random ones.
    order = np.argsort(hashes)
    places = np.empty(len(hashes), np.int64)
    places[order] = np.minimum(np.searchsorted(members, hashes[order]), len(members) - 1)
    return places


class KeySet:
    """A set of `<clip_id>.<digest>` keys as two independent 64-bit numbers each: 16 bytes per key.

    A key is taken for a member only if both agree, so a clip that is not recorded is never left out in practice (one
    chance in 2**128 per pair of keys).
    """

    def __init__(self, keys: Iterable[str] | pa.Array | pa.ChunkedArray) -> None:
        hashed = [(string_hashes(chunk), _salted(chunk)) for chunk in _string_chunks(keys)]
        first = np.concatenate([np.empty(0, np.uint64), *(pair[0] for pair in hashed)])
        second = np.concatenate([np.empty(0, np.uint64), *(pair[1] for pair in hashed)])
        order = np.argsort(first, kind="stable")
        self._first, self._second = first[order], second[order]

    def __len__(self) -> int:
        return len(self._first)

    def contains(self, keys: pa.Array) -> npt.NDArray[np.bool_]:
        """Says which of `keys` (string array) are in the set: bool [rows]."""
        if not len(self):
            return np.zeros(len(keys), bool)
        hashes = string_hashes(keys)
        at = _places(self._first, hashes)
        found: npt.NDArray[np.bool_] = self._first[at] == hashes
        rows = np.flatnonzero(found)
        found[rows] = self._second[at[rows]] == _salted(keys.take(pa.array(rows)))
        return found


def _salted(strings: pa.Array) -> Words:
    # Another hash of the same strings: a prefix of a whole word shifts nothing and changes every later state.
    return string_hashes(pc.binary_join_element_wise(pa.scalar("another:"), strings, ""))


def _string_chunks(keys: Iterable[str] | pa.Array | pa.ChunkedArray) -> Iterator[pa.Array]:
    if isinstance(keys, pa.Array | pa.ChunkedArray):
        for batch in pa.table({"key": keys}).to_batches(max_chunksize=_KEY_CHUNK):
            yield batch.column(0).cast(pa.string())
        return
    stream = iter(keys)
    while chunk := list(itertools.islice(stream, _KEY_CHUNK)):
        yield pa.array(chunk, pa.string())
