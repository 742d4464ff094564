"""The books find what is wrong in a bucket: a check that could not fail would prove nothing."""

from __future__ import annotations

import hashlib
import io
import json
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from jobs.media.encode import encode
from tests.cluster.conftest import s3_server  # noqa: F401  (a fixture)
from tests.cluster.daemons.ceph import S3Server
from tests.faults.books import Books, Ledger
from tests.faults.old_listing import OldListing
from tests.faults.proxy import open_proxy

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
        self.put_manifest("c0", "c1")
        for clip_id in ("c0", "c1"):
            self.put(render(clip_id), self.video)
            self.put(f"videos/{clip_id}.mp4", self.video)
            self.put(f"attempts/{clip_id}.0a.1", b"{}")
            self.put_record(clip_id)

    def put(self, path: str, data: bytes) -> None:
        self.fs.pipe_file(f"{self.url}/{path}", data)

    def put_manifest(self, *clip_ids: str) -> None:
        rows = io.BytesIO()
        pq.write_table(pa.table({"clip_id": clip_ids}), rows)
        self.put("manifest.parquet", rows.getvalue())

    def put_record(self, clip_id: str, *, num_frames: int = 8, **more: object) -> None:
        video = {"path": render(clip_id), "sha256": hashlib.sha256(self.video).hexdigest()}
        record = {"clip_id": clip_id, "digest": "0a", "clip": {"num_frames": num_frames}, "video": video, **more}
        self.put(f"records/{clip_id}.0a.json", json.dumps(record).encode())


def render(clip_id: str) -> str:
    return f"renders/{clip_id}.0a.0123456789abcdef.mp4"


@pytest.fixture
def run(s3_server: S3Server, tmp_path: Path) -> Run:  # noqa: F811
    return Run(s3_server, tmp_path)


def test_a_whole_run_is_clean(run: Run) -> None:
    run.put("attempts/c1.0a.2", b"{}")
    run.put("failures/c2.0a.1.json", b"{}")
    run.put("reports/job-00000.json", b"{}")
    run.put_manifest("c0", "c1", "c2")
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
    run.put(render("c1"), run.video[:-100])
    run.put("records/c2.0a.json", b'{"clip_id": "c2"')
    run.put_record("c3")
    run.put("records/c4.0a.json", run.fs.cat_file(f"{run.url}/records/c0.0a.json"))
    run.put("manifest.parquet", b"PAR1")
    run.put("reports/job-00000.json", b"")
    told = "\n".join(run.ledger.close(["c0", "c1", "c2", "c3", "c4"]).half_written)
    for words in (
        "videos/c9.mp4: a video without a record",
        "records/c0.0a.json: the video plays 8 frames, recorded are 9",
        "records/c1.0a.json: the video is not the one recorded",
        "records/c2.0a.json: JSONDecodeError",
        "records/c3.0a.json: FileNotFoundError",
        "records/c4.0a.json: it is the record of c0.0a.json",
        "manifest.parquet: ArrowInvalid",
        "reports/job-00000.json: JSONDecodeError",
    ):
        assert words in told


def test_a_plain_name_that_is_missing_or_of_another_video_is_told(run: Run, tmp_path: Path) -> None:
    encode(np.full((8, 32, 32, 3), 200, np.uint8), tmp_path / "b.mp4", fps=8, crf=18, tags={})
    run.put("videos/c0.mp4", (tmp_path / "b.mp4").read_bytes())
    run.fs.rm(f"{run.url}/videos/c1.mp4")
    other, missing = run.ledger.close(["c0", "c1"]).misnamed
    assert "videos/c0.mp4: not the video that the record names" in other
    assert "videos/c1.mp4: not there" in missing


def test_videos_that_no_record_names_are_counted_and_no_error(run: Run) -> None:
    run.put("renders/c0.0a.fedcba9876543210.mp4", run.video)
    books = run.ledger.close(["c0", "c1"])
    assert (books.orphans, books.is_clean) == (1, True)


def test_anything_of_a_manifest_that_was_refused_is_told(run: Run) -> None:
    run.put("attempts/d1.0b.1", b"{}")
    run.put("renders/d0.0b.0123456789abcdef.mp4", run.video)
    told = run.ledger.close(["c0", "c1"], refused=["d0", "d1"]).strangers
    assert ["attempts/d1.0b.1" in told[0], "renders/d0.0b" in told[1]] == [True, True]


def test_a_manifest_of_other_clips_is_told(run: Run) -> None:
    run.put_manifest("d0", "d1")
    (told,) = run.ledger.close(["c0", "c1"]).half_written
    assert "manifest.parquet: it has other clips than the run" in told


@pytest.mark.parametrize("path", ["records/c1.0a.json", render("c1")])
def test_a_record_that_a_fault_damaged_counts_when_it_is_whole_again_and_may_change(run: Run, path: str) -> None:
    assert run.ledger.look() == 2
    run.ledger.damage(path, kept=0.5)
    assert run.ledger.look() == 1
    books = run.ledger.close(["c0", "c1"])
    assert (len(books.half_written), books.changed) == (1, [])  # not mended: half-written
    run.put(render("c1"), run.video)
    run.put_record("c1", attempt=2)
    assert run.ledger.look() == 2
    assert run.ledger.close(["c0", "c1"]).is_clean


def test_a_clip_by_another_plan_than_its_guard_decided_is_told(run: Run) -> None:
    decided = {"rendered": "none", "stepped_down": True, "decided_at": "2026-11-27T12:00:00.000+00:00"}
    run.put("guard/job-00003.0a.json", json.dumps(decided).encode())
    later = {"job": {"shard": 3}, "started_at": "2026-11-27T12:00:01.000+00:00"}
    run.put_record("c0", plan={"rendered": "none"}, **later)
    run.put_record("c1", plan={"broadcast": "pab246"}, **later)
    (told,) = run.ledger.close(["c0", "c1"]).broken
    assert "records/c1.0a.json: by the plan asked for, but job-00003.0a.json says none" in told
    run.put_record("c1", plan={"broadcast": "pab246"}, **later | {"started_at": "2026-11-27T11:59:59.000+00:00"})
    assert run.ledger.close(["c0", "c1"]).is_clean


def test_a_broken_promise_makes_the_books_wrong() -> None:
    assert not Books(broken=["jobs outlived their cancel"]).is_clean


def test_listings_of_a_moment_are_answered_as_the_server_answered_then(
    run: Run, s3_server: S3Server  # noqa: F811
) -> None:  # fmt: skip
    bucket = run.url.split("/")[2]
    for name in ("a b+c.mp4", "ü&x", "z/deep/er"):
        run.put(f"videos/{name}", b"x")
    old = OldListing.of(s3_server, bucket)
    with open_proxy(urlsplit(s3_server.endpoint).port or 0) as proxy:
        seen = s3fs.S3FileSystem(
            key=s3_server.access_key, secret=s3_server.secret_key, endpoint_url=f"http://127.0.0.1:{proxy.port}",
            use_listings_cache=False, skip_instance_cache=True,
        )  # fmt: skip
        asks = [
            {"Prefix": "run/videos/"}, {"Prefix": "run/", "Delimiter": "/"}, {"Prefix": "run/videos/", "MaxKeys": 2},
            {"Prefix": "run/", "StartAfter": "run/records/c0.0a.json"}, {"Prefix": "run/none/"}, {},
        ]  # fmt: skip
        fresh = [answer(seen.call_s3("list_objects_v2", Bucket=bucket, **asked)) for asked in asks]
        run.put("videos/later.mp4", b"x")
        run.fs.rm(f"{run.url}/videos/c0.mp4")
        proxy.make_listings_stale(old.answer, for_s=60, share=1.0)
        assert [answer(seen.call_s3("list_objects_v2", Bucket=bucket, **asked)) for asked in asks] == fresh
        assert proxy.stale_hits == len(asks)


def answer(told: dict[str, Any]) -> list[object]:
    files = [(file["Key"], file["Size"], file["ETag"]) for file in told.get("Contents", ())]
    folders = [folder["Prefix"] for folder in told.get("CommonPrefixes", ())]
    return [files, folders, told["IsTruncated"], told["KeyCount"]]


def test_a_store_without_conditions_writes_over_what_exists(run: Run, s3_server: S3Server) -> None:  # noqa: F811
    with open_proxy(urlsplit(s3_server.endpoint).port or 0, secret_key=s3_server.secret_key) as proxy:
        seen = s3fs.S3FileSystem(
            key=s3_server.access_key, secret=s3_server.secret_key, endpoint_url=f"http://127.0.0.1:{proxy.port}",
            skip_instance_cache=True,
        )  # fmt: skip
        with pytest.raises((FileExistsError, OSError), match=r".*"):
            seen.pipe_file(f"{run.url}/records/c0.0a.json", b"{}", mode="create")
        proxy.drops_conditions = True
        seen.pipe_file(f"{run.url}/records/c0.0a.json", b"{}", mode="create")
    assert (run.ledger.read("records/c0.0a.json"), proxy.dropped) == (b"{}", 1)
