"""Writing shards: each under the next free number, so that two submits of one run never share or lose a shard."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

from jobs.store import layout
from jobs.store.bucket import Bucket
from manifests.read import open_manifest
from manifests.shard_files import write_shards
from manifests.shards import ShardPlan


class _Numbers:
    """Gives each planned shard the next number that nobody has taken. Used from several threads."""

    def __init__(self, bucket: Bucket, first: int) -> None:
        self.taken: dict[int, int] = {}
        self._bucket = bucket
        self._numbers = itertools.count(first)  # one step of it is atomic

    def write(self, planned: int, data: bytes) -> None:
        """Creates the shard; another submit may have taken a number meanwhile."""
        number = next(n for n in self._numbers if self._bucket.create(layout.shard(n), data))
        self.taken[planned] = number


class _NewShard(io.BytesIO):
    """A shard in memory that is created in the bucket when closed after a success."""

    def __init__(self, numbers: _Numbers, planned: int) -> None:
        super().__init__()
        self._numbers = numbers
        self._planned = planned

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self._numbers.write(self._planned, self.getvalue())
        super().__exit__(None, None, None)


def create_shards(bucket: Bucket, plan: ShardPlan, accepted: Path) -> dict[int, int]:
    """Writes the shards of a plan; returns by index in the plan the number each got, after all that are there.

    A shard is frozen: a number once taken is never written again. Raises BucketError.
    """
    known = [int(stem) for name in bucket.names("shards") if (stem := name.removesuffix(".parquet")).isdigit()]
    numbers = _Numbers(bucket, max(known, default=-1) + 1)
    with open_manifest(str(accepted)) as manifest:
        write_shards(plan, manifest, lambda planned: _NewShard(numbers, planned))
    return dict(sorted(numbers.taken.items()))
