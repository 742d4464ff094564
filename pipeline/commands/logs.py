"""`logs`: what the jobs logged, about one clip, by one job, or all; also while they run."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict

from jobs.log import SENT_EVERY_S
from jobs.store import layout
from jobs.store.bucket import Bucket
from pipeline.exits import Exit, UsageError
from pipeline.run.logs import LogLine, Logs
from pipeline.run.run import Run, load_run, open_bucket
from pipeline.run.run_keys import run_keys
from pipeline.run.state import read_progress
from pipeline.screen import Screen

FOLLOW_EVERY_S = 5.0


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Carries out `logs`."""
    bucket = open_bucket(arguments.output)
    found_run = load_run(bucket)
    if arguments.job is not None and not layout.is_job_name(arguments.job):
        raise UsageError(f"--job {arguments.job}, needs a job's name such as job-00007")
    logs = Logs(bucket=bucket, clip_id=arguments.clip, job=arguments.job)
    if arguments.follow:
        if arguments.json:
            raise UsageError("--follow shows lines without end and --json one document; leave one of them out")
        follow(logs, found_run, tell=lambda line: screen.result({}, str(line)))
        return Exit.OK
    found = list(logs.new_lines())
    screen.result(
        {"output": bucket.url, "clip_id": arguments.clip, "lines": [asdict(line) for line in found]},
        "\n".join(map(str, found)) or _nothing(bucket, logs),
    )
    return Exit.OK


def follow(logs: Logs, found_run: Run, *, tell: Callable[[LogLine], None]) -> None:
    """Tells every line that is there, then each new one, until all clips of the run have ended. Raises BucketError."""
    while True:
        progress = read_progress(logs.bucket, run_keys(logs.bucket))
        has_ended = len(progress.recorded) + len(progress.not_rendered) >= found_run.num_clips
        for line in logs.new_lines():
            tell(line)
        if has_ended:
            return
        time.sleep(FOLLOW_EVERY_S)


def _nothing(bucket: Bucket, logs: Logs) -> str:
    of = f" of {logs.job}" if logs.job else ""
    named = f" names clip {logs.clip_id}" if logs.clip_id else " is there yet"
    return f"no log{of} in {bucket.url}/logs{named}; a job that runs puts its log there every {SENT_EVERY_S} seconds"
