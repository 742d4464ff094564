"""What has just come out of a run, for the dashboard's page: pictures of the latest clips, failures, lines of logs."""

from __future__ import annotations

import base64
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cluster.run_state import LatestItem, RunState
from jobs.log import log_event
from jobs.store import layout
from jobs.store.bucket import Bucket, BucketError
from pipeline.run.logs import Logs
from pipeline.run.state import NOTHING_KNOWN, FailedClip, Progress, clip_id, failed_clips

_LOG = logging.getLogger(__name__)
EVERY_S = 10.0
MOST_CLIPS = 12
_MOST_LINES = 60
_MOST_LOGS = 4
"""Logs that are read: a driver of a thousand jobs has more to do."""


@dataclass(slots=True, kw_only=True)
class Latest:
    """Looks into the bucket, at most every `every_s` seconds. A bucket that is away costs the picture only."""

    bucket: Bucket
    every_s: float = EVERY_S
    clips: deque[LatestItem] = field(default_factory=lambda: deque(maxlen=MOST_CLIPS))
    failures: Sequence[FailedClip] = ()
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_MOST_LINES))
    _seen: Progress = NOTHING_KNOWN
    _logs: dict[str, Logs] = field(default_factory=dict)
    _looked_at: float = float("-inf")

    def look(self, progress: Progress | None, running: Sequence[str]) -> None:
        """Reads what is new. `running`: the names of jobs that run, whose logs are read."""
        now = time.monotonic()
        if progress is None or now - self._looked_at < self.every_s:
            return
        self._looked_at = now
        try:
            self._read(progress, running)
        except BucketError as error:
            log_event(_LOG, "latest_unknown", error=str(error))

    def shown_with(self, state: RunState) -> RunState:
        """Returns the page's state with what was read last."""
        return replace(
            state,
            latest=list(self.clips),
            failures=[(each.clip_id, f"{each.error} in {each.stage}: {each.message}") for each in self.failures],
            log=list(self.lines),
        )

    def _read(self, progress: Progress, running: Sequence[str]) -> None:
        new = sorted(progress.recorded - self._seen.recorded)[-MOST_CLIPS:]
        records = self.bucket.records(new)
        posters = {key: str(record["video"].get("poster")) for key, record in records.items()}
        pictures = self.bucket.map_files(self._picture, posters.values())
        self.clips.extendleft(LatestItem(name=clip_id(key), picture=pictures[path]) for key, path in posters.items())
        if progress.not_rendered != self._seen.not_rendered:
            self.failures = failed_clips(self.bucket, progress)
        self._seen = progress
        for job in running[:_MOST_LOGS]:
            logs = self._logs.setdefault(job, Logs(bucket=self.bucket, job=job))
            self.lines.extend(str(line) for line in logs.new_lines())

    def _picture(self, path: str) -> str:
        # Runs of earlier versions have no pictures; whoever writes to a bucket must not choose what is read.
        if not layout.is_poster(path):
            return ""
        try:
            return base64.b64encode(self.bucket.read(path)).decode()
        except FileNotFoundError:
            return ""
