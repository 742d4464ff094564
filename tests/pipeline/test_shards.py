"""Shards in the bucket: what a job reads, and no more."""

from __future__ import annotations

import base64
import io
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.store import layout
from jobs.store.bucket import Bucket
from manifests.accept import accept
from manifests.read import open_manifest, read_clips
from manifests.shards import plan_shards
from pipeline.run.shards import create_shards
from tests.manifests.conftest import family


def test_a_column_that_is_larger_than_a_shard_may_be_stays_out_of_it(tmp_path: Path) -> None:
    num_rows, note_bytes = 10, 100_000
    notes = [base64.b64encode(random.Random(row).randbytes(note_bytes)).decode() for row in range(num_rows)]
    table = pa.table({"prompt": [f"prompt {row}" for row in range(num_rows)], "notes": notes})
    pq.write_table(table, tmp_path / "wide.parquet", compression=None, use_dictionary=False)
    accepted = tmp_path / "accepted.parquet"
    accept(str(tmp_path / "wide.parquet"), {"wan": family()}, default_model="wan", sink=accepted)
    with open_manifest(str(accepted)) as manifest:
        plan = plan_shards(manifest.iter_batches(), [], cost=lambda _group: 1.0, job_minutes=60, load_s={"wan": 0.0})
    bucket = Bucket(str(tmp_path / "out"))
    assert create_shards(bucket, plan, accepted) == {0: 0}
    shard = bucket.read(layout.shard(0))
    assert len(shard) < note_bytes, "a shard is one PUT, of 64 MiB at most"
    assert {clip.prompt for clip in read_clips(io.BytesIO(shard))} == set(table.column("prompt").to_pylist())
