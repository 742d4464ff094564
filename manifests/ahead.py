"""Reading and writing beside the work of the caller: one thread each, one item ahead."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import BinaryIO, Self, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

Item = TypeVar("Item")

_UNIQUE_COLUMNS = ("clip_id", "digest", "prompt", "seed")


def read_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yields `items` in their order while a thread already fetches the next one."""
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        future = pool.submit(next, items, None)
        while (item := future.result()) is not None:
            future = pool.submit(next, items, None)
            yield item


class BatchWriter:
    """Writes record batches as one Parquet file in a thread, at most one batch behind. A context manager.

    `stream` stays open. What was written before an exception is to be thrown away by the caller.
    """

    def __init__(self, stream: BinaryIO, schema: pa.Schema) -> None:
        # A dictionary, or least and greatest, of values that hardly repeat would only cost time.
        dictionaries = [name for name in schema.names if name not in _UNIQUE_COLUMNS]
        self._parquet = pq.ParquetWriter(
            stream, schema, compression="zstd", use_dictionary=dictionaries, write_statistics=dictionaries
        )
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write-behind")
        self._pending: Future[None] | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        """Hands over a batch; returns when the one before is written."""
        self._wait()
        self._pending = self._pool.submit(self._parquet.write_batch, batch)

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)
        if error is None:
            self._wait()
        self._parquet.close()
