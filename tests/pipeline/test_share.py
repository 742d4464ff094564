"""The page for others: signed links to videos and pictures, and nothing that names machines."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.reports.report_gallery import COLUMNS
from jobs.store.bucket import Bucket, BucketError
from pipeline.run.report_gallery import GalleryWriter
from pipeline.run.report_rows import ClipRow
from pipeline.run.state import FailedClip


def test_links_of_the_page_for_others_are_signed_and_lead_to_no_log(tmp_path: Path) -> None:
    bucket = Bucket(str(tmp_path))
    failed = FailedClip(
        clip_id="b", stage="denoise", error="E", message="m", attempt=1, path="failures/b.0b.1.json", log="logs/x.log"
    )
    writer = GalleryWriter(
        bucket=bucket, failures={"b": failed}, folder="shared", sign=lambda path: f"https://x/{path}?k"
    )
    batch = pa.RecordBatch.from_pylist(
        [{"clip_id": name, "digest": f"0{name}", "prompt": "p", "seed": 2**62 + 1} for name in "ab"]
    )
    rendered = ClipRow(outcome="rendered", video="renders/a.mp4", log="logs/y.log", job="job-00000")
    writer.add(batch, [rendered, ClipRow(outcome="failed")])
    assert writer.close().files == ["https://x/reports/shared/00000.js?k"]
    text = (tmp_path / "reports/shared/00000.js").read_text()
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in json.loads(text[len("pabClips(0, ") : -len(");\n")])]
    assert rows[0]["seed"] == "4611686018427387905", "a number of a browser would lose its last digits"
    assert rows[0]["video"] == "https://x/renders/a.mp4?k"
    assert rows[1]["error"] == "E in denoise: m"
    assert all(row[name] is None for row in rows for name in ("poster", "record", "log", "job", "failure"))


def test_signed_links_are_made_by_the_store_and_refused_in_words_where_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "word")
    link = Bucket("s3://box/run1").signed_link("renders/a.mp4", seconds=60)
    assert "box" in link
    assert "/run1/renders/a.mp4?" in link
    assert "Signature=" in link
    with pytest.raises(BucketError, match=r"a folder has no signed links; s3, gs and az have"):
        Bucket(str(tmp_path)).signed_link("a", seconds=60)
