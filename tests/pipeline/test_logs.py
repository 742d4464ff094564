"""`logs`: lines of a job that still runs come once, whole, and in the end all of them."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from jobs.log import log_event
from jobs.rendering.kept_log import kept_log
from jobs.store import layout
from jobs.store.bucket import Bucket
from pipeline.commands.logs import follow
from pipeline.run.logs import Logs
from pipeline.run.run import Run

NAME = "job-00007.12-0.rank0.log"


def put(bucket: Bucket, text: str, name: str = NAME) -> None:
    bucket.write(f"logs/{name}", text.encode())


def told(logs: Logs) -> list[str]:
    return [line.line for line in logs.new_lines()]


def test_a_growing_log_is_told_line_by_line_and_each_line_once(tmp_path: Path) -> None:
    bucket = Bucket(str(tmp_path))
    logs, of_clip, of_job = (
        Logs(bucket=bucket),
        Logs(bucket=bucket, clip_id="a.b"),
        Logs(bucket=bucket, job="job-00001"),
    )
    put(bucket, "event=job_started\nevent=clip_started clip=a.b\nevent=hal")
    put(bucket, "no log of a job\n", "jobs-1.json")
    assert told(logs) == ["event=job_started", "event=clip_started clip=a.b"]
    put(bucket, "event=job_started\nevent=clip_started clip=a.b\nevent=half clip=axb\nevent=clip_rendered clip=a.b\n")
    assert told(logs) == ["event=half clip=axb", "event=clip_rendered clip=a.b"]
    assert told(logs) == []
    assert told(of_clip) == ["event=clip_started clip=a.b", "event=clip_rendered clip=a.b"]
    assert told(of_job) == []


def test_a_job_that_runs_puts_its_log_into_the_bucket_and_the_rest_at_its_end(tmp_path: Path) -> None:
    bucket, scratch, log = Bucket(str(tmp_path / "out")), tmp_path / "scratch", logging.getLogger("jobs.test")
    scratch.mkdir()
    place = SimpleNamespace(name="12-0", rank=0)
    context = SimpleNamespace(
        bucket=bucket,
        scratch=scratch,
        shard=7,
        ranks=SimpleNamespace(place=place),
        settings=SimpleNamespace(run_id="r1"),
    )
    logs, seen = Logs(bucket=bucket), threading.Event()
    with kept_log(cast(Any, context), every_s=0.01):
        log_event(log, "job_started")
        for _ in range(500):
            if lines := told(logs):
                break
            seen.wait(0.01)
        log_event(log, "job_ended")
    assert ["event=job_started" in line for line in lines] == [True]
    assert ["event=job_ended" in line for line in told(logs)] == [True]
    assert layout.is_log(layout.job_log(7, "12-0", 0))


def test_following_ends_with_the_run(tmp_path: Path) -> None:
    bucket, lines = Bucket(str(tmp_path)), list[str]()
    put(bucket, "event=job_ended\n")
    run = Run(run_id="0" * 12, manifest_digest="d", num_clips=0, pixels={}, weights={})
    follow(Logs(bucket=bucket), run, tell=lambda line: lines.append(str(line)))
    assert lines == [f"{NAME}: event=job_ended"]
