"""What the dashboard's run page is told."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.run_state import JobLine, RunState
from jobs.store import layout
from jobs.store.bucket import Bucket
from pipeline.run.display import LineDisplay, Snapshot
from pipeline.run.panel import PanelDisplay
from pipeline.run.state import NOTHING_KNOWN, clip_id


@dataclass(slots=True)
class Page:
    told: list[RunState] = field(default_factory=list)

    def show(self, state: RunState) -> None:
        self.told.append(state)


def line(number: int, state: str, *, done: int = 0) -> JobLine:
    return JobLine(name=f"job-{number:05d}", state=state, done=done, failed=0, running=0, queued=4 - done)


def snapshot(**changes: object) -> Snapshot:
    values: dict[str, object] = {
        "num_clips": 12, "rendered": 6, "failed": 1, "started": 2, "new": 6, "elapsed_s": 360.0, "jobs_running": 1,
        "jobs_waiting": 1, "gpu_s": 720.0, "jobs": [line(0, "ended", done=4), line(1, "waiting"), line(2, "running", done=2)],
    } | changes  # fmt: skip
    return Snapshot(**values)


def test_the_page_tells_how_far_the_run_is_and_what_broadcasting_saved(tmp_path: Path) -> None:
    bucket, page = Bucket(str(tmp_path)), Page()
    with PanelDisplay(LineDisplay(), page, bucket=bucket, planned_speedup=1.5, every_s=0.0) as display:
        display.update(snapshot(new=0, jobs=[line(1, "waiting")]))
        bucket.write_json(layout.job_report(0), {"speedup": {"measured": {"pab_factor": 1.24}, "derived": None}})
        display.update(snapshot())
    before, now = page.told
    assert before.title == bucket.url
    assert dict(before.facts)["clips per GPU-hour"] == "not yet known"
    assert dict(before.facts)["broadcast makes it"] == "1.50 x as fast, as planned"
    assert dict(now.facts) == {
        "rendered": "6 of 12",
        "failed": "1",
        "running": "2",
        "jobs": "1 running, 1 waiting",
        "clips per GPU-hour": "30.0",
        "time left": "5 min 0 s",
        "broadcast makes it": "1.24 x as fast, measured in 1 job",
    }
    assert [job.name for job in now.jobs] == ["job-00002", "job-00001", "job-00000"]


def test_a_job_without_a_report_is_asked_for_it_once(tmp_path: Path) -> None:
    bucket, page = Bucket(str(tmp_path)), Page()
    with PanelDisplay(LineDisplay(), page, bucket=bucket, planned_speedup=None, every_s=0.0) as display:
        display.update(snapshot())
        bucket.write_json(layout.job_report(0), {"speedup": {"measured": {"pab_factor": 9.9}, "derived": None}})
        display.update(snapshot())
    assert {dict(state.facts)["broadcast makes it"] for state in page.told} == {"not yet known"}


def test_the_page_is_told_no_more_often_than_it_looks(tmp_path: Path) -> None:
    page = Page()
    with PanelDisplay(LineDisplay(), page, bucket=Bucket(str(tmp_path)), planned_speedup=None) as display:
        for _ in range(3):
            display.update(snapshot())
    assert len(page.told) == 1


def test_the_page_has_pictures_of_the_latest_clips_failures_and_the_logs_of_running_jobs(tmp_path: Path) -> None:
    bucket, page = Bucket(str(tmp_path)), Page()
    keys = [f"clip-{number:02}.0a" for number in range(14)]
    for key in keys:
        path = layout.poster(key, "77")
        video = {"path": layout.render(key, "77"), "sha256": "77", "size_bytes": 1, "poster": path}
        if key != keys[-1]:  # one of an earlier version
            bucket.write(path, b"JPEG of " + key.encode())
        else:
            del video["poster"]
        parts = {"plan": {}, "steps": {}, "seconds": {}, "elapsed_s": 1.0, "job": {}}
        bucket.write_json(layout.record(key), {"clip_id": clip_id(key), "digest": "0a", "video": video, **parts})
    bucket.write_json(layout.failure("bad.0b", 2), {"stage": "denoise", "error": "E", "message": "no", "attempt": 2})
    bucket.write(layout.job_log(2, "1-0", 0), b"event=clip_started clip=x\n")
    bucket.write(layout.job_log(1, "1-0", 0), b"event=of_a_job_that_waits\n")
    progress = replace(NOTHING_KNOWN, recorded=frozenset(keys), failed=frozenset({"bad.0b"}))
    with PanelDisplay(LineDisplay(), page, bucket=bucket, planned_speedup=None, every_s=0.0) as display:
        display.update(snapshot(progress=progress))
        display.update(snapshot(progress=progress))
    first, again = page.told
    assert again == first, "the bucket is not asked again at once"
    assert [item.name for item in first.latest] == [clip_id(key) for key in reversed(keys[2:])]
    assert first.latest[0].picture == ""
    assert base64.b64decode(first.latest[1].picture) == b"JPEG of clip-12.0a"
    assert first.failures == [("bad", "E in denoise: no")]
    assert first.log == ["job-00002.1-0.rank0.log: event=clip_started clip=x"]
