"""The books find what is wrong in a bucket: a check that could not fail would prove nothing."""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path

import numpy as np
import pytest
import s3fs

from jobs.media.encode import encode
from tests.cluster.conftest import s3_server  # noqa: F401  (a fixture)
from tests.cluster.daemons.ceph import S3Server
from tests.faults.books import Ledger

pytestmark = pytest.mark.cluster


class Run:
    def __init__(self, server: S3Server, folder: Path) -> None:
        name = f"books-{uuid.uuid4().hex[:8]}"
        self.fs = s3fs.S3FileSystem(
            key=server.access_key, secret=server.secret_key, endpoint_url=server.endpoint, skip_instance_cache=True
        )
        self.fs.call_s3("create_bucket", Bucket=name)
        self.url = f"s3://{name}/run"
        self.ledger = Ledger(server, self.url)
        encode(np.zeros((8, 32, 32, 3), np.uint8), folder / "a.mp4", fps=8, crf=18, tags={})
        self.video = (folder / "a.mp4").read_bytes()
        for clip_id in ("c0", "c1"):
            self.put(f"videos/{clip_id}.mp4", self.video)
            self.put(f"attempts/{clip_id}.0a.1", b"{}")
            self.put_record(clip_id)

    def put(self, path: str, data: bytes) -> None:
        self.fs.pipe_file(f"{self.url}/{path}", data)

    def put_record(self, clip_id: str, *, num_frames: int = 8, **more: object) -> None:
        video = {"path": f"videos/{clip_id}.mp4", "sha256": hashlib.sha256(self.video).hexdigest()}
        record = {"clip_id": clip_id, "clip": {"num_frames": num_frames}, "video": video, **more}
        self.put(f"records/{clip_id}.0a.json", json.dumps(record).encode())


@pytest.fixture
def run(s3_server: S3Server, tmp_path: Path) -> Run:  # noqa: F811
    return Run(s3_server, tmp_path)


def test_a_whole_run_is_clean(run: Run) -> None:
    run.put("attempts/c1.0a.2", b"{}")
    run.put("failures/c2.0a.1.json", b"{}")
    assert run.ledger.look() == 2
    books = run.ledger.close(["c0", "c1", "c2"])
    assert (books.is_clean, books.clips, books.recorded, books.failed, books.again) == (True, 3, 2, 1, 1)


def test_a_clip_without_record_and_failure_or_with_two_records_is_lost(run: Run) -> None:
    run.put("records/c1.0b.json", run.fs.cat_file(f"{run.url}/records/c1.0a.json"))
    books = run.ledger.close(["c0", "c1", "c9"])
    assert ["c1 has 2 records" in books.lost[0], "c9 has 0 records" in books.lost[1]] == [True, True]
    assert not books.is_clean


def test_a_record_that_changes_after_it_was_seen_is_told(run: Run) -> None:
    run.ledger.look()
    run.put_record("c1", attempt=2)
    (told,) = run.ledger.close(["c0", "c1"]).changed
    assert "records/c1.0a.json" in told


def test_every_way_of_being_half_written_is_told(run: Run) -> None:
    run.put("videos/c9.mp4", run.video)
    run.put_record("c0", num_frames=9)
    run.put("videos/c1.mp4", run.video[:-100])
    run.put("records/c2.0a.json", b'{"clip_id": "c2"')
    run.put_record("c3")
    told = "\n".join(run.ledger.close(["c0", "c1", "c2", "c3"]).half_written)
    for words in (
        "videos/c9.mp4: a video without a record",
        "records/c0.0a.json: the video plays 8 frames, recorded are 9",
        "records/c1.0a.json: the video is not the one recorded",
        "records/c2.0a.json: JSONDecodeError",
        "records/c3.0a.json: FileNotFoundError",
    ):
        assert words in told
