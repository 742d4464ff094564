"""Writing the shards of a plan: one Parquet file each, with bounded memory whatever the size of the manifest.

Shards are written in windows of about `WINDOW_BYTES` of rows. For each window only the row groups that hold one of its
rows are read, one batch at a time, and only its rows are kept; then its files are written, a few at a time. So at most
`num_threads` files are open and the prompts of one window are in memory. Shards are taken in the order of their first
row, so a window touches few row groups: the manifest is read about once if clips of one kind lie together or are mixed
evenly.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.ahead import read_ahead
from manifests.clip import Clip
from manifests.read import ManifestFile
from manifests.schema import CLIP_SCHEMA, accepted_schema, clip_columns
from manifests.shards import ShardPlan

WINDOW_BYTES = 128 << 20

Indices = npt.NDArray[np.int64]


def write_shards(
    plan: ShardPlan,
    accepted: ManifestFile,
    open_output: Callable[[int], BinaryIO],
    *,
    window_bytes: int = WINDOW_BYTES,
    num_threads: int = 4,
) -> None:
    """Writes every shard of `plan` as a Parquet file: its rows of `accepted`, the manifest that was planned.

    Columns that no job reads are left out, since one of them may be larger than all else.
    `open_output(shard_index)` returns a file to write bytes to, which is closed here; it is called from `num_threads`
    threads, as a bucket takes long to answer. Rows are in the order of rendering. Raises ValueError if the plan is of a
    manifest with another number of rows.
    """
    if len(plan.assignment) != accepted.num_rows:
        rows = f"the plan has {len(plan.assignment)} rows, {accepted.name} {accepted.num_rows}"
        raise ValueError(f"{rows}; plan it again")
    window_rows = max(1, int(window_bytes / max(1.0, accepted.row_bytes(clip_columns(accepted.schema)))))
    with ThreadPoolExecutor(num_threads, thread_name_prefix="write-shards") as pool:
        for shards in _windows(plan, window_rows):
            for written in [pool.submit(_write, open_output, *part) for part in _tables(plan, accepted, shards)]:
                written.result()


def shard_file(clips: Sequence[Clip]) -> bytes:
    """Returns a shard of these clips, which have no references and are of one loop: for jobs that no manifest asked for."""
    schema = accepted_schema(CLIP_SCHEMA)
    rows = [{name: getattr(clip, name) for name in schema.names} for clip in clips]
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), stream)
    return stream.getvalue()


def _write(open_output: Callable[[int], BinaryIO], shard_index: int, table: pa.Table) -> None:
    with open_output(shard_index) as stream:
        pq.write_table(table, stream, compression="zstd")


def _tables(plan: ShardPlan, accepted: ManifestFile, shards: list[int]) -> Iterator[tuple[int, pa.Table]]:
    """Yields the index and the rows of each of `shards`; all of them are in memory."""
    rows = np.concatenate([plan.rows(shard) for shard in shards])
    at = np.argsort(np.argsort(rows, kind="stable"), kind="stable")
    table = _read_rows(accepted, np.sort(rows)).take(pa.array(at))
    start = 0
    for shard in shards:
        yield shard, table.slice(start, plan.shards[shard].num_clips)
        start += plan.shards[shard].num_clips


def _windows(plan: ShardPlan, window_rows: int) -> Iterator[list[int]]:
    """Yields lists of shards that have at most `window_rows` rows together, or one shard."""
    first_rows = [int(plan.rows(shard.index).min()) for shard in plan.shards]
    window: list[int] = []
    num_rows = 0
    for index in np.argsort(first_rows, kind="stable").tolist():
        num_clips = plan.shards[index].num_clips
        if window and num_rows + num_clips > window_rows:
            yield window
            window, num_rows = [], 0
        window.append(index)
        num_rows += num_clips
    if window:
        yield window


def _read_rows(accepted: ManifestFile, rows: Indices) -> pa.Table:
    """Reads `rows` (ascending, distinct) from the row groups that hold them."""
    columns = clip_columns(accepted.schema)
    schema = pa.schema([accepted.schema.field(name) for name in columns], metadata=accepted.schema.metadata)
    starts = accepted.row_group_starts()
    holders = np.unique(np.searchsorted(starts, rows, "right") - 1)
    numbers = np.concatenate([np.arange(starts[holder], starts[holder + 1]) for holder in holders])
    kept = []
    position = 0
    for batch in read_ahead(accepted.iter_batches(columns, row_groups=[int(holder) for holder in holders])):
        here = numbers[position : position + len(batch)]
        wanted = rows[np.searchsorted(rows, here[0]) : np.searchsorted(rows, here[-1], "right")]
        kept.append(batch.take(pa.array(np.searchsorted(here, wanted))))
        position += len(batch)
    return pa.Table.from_batches([batch.select(columns) for batch in kept], schema=schema).combine_chunks()
