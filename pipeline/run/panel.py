"""The run page of the dashboard: what the driver's display shows, also for a browser, and job by job."""

from __future__ import annotations

import time
from typing import Protocol, Self

from cluster.job import JobState
from cluster.run_state import RunState
from jobs.reports.number_formats import duration
from jobs.store import layout
from jobs.store.bucket import Bucket, BucketError
from pipeline.run.display import Display, Snapshot
from pipeline.run.latest import Latest
from pipeline.screen import counted

EVERY_S = 2.0
_MOST_JOBS = 500
"""A page of more lines is of no use to anybody; running jobs come first."""
_ORDER = {JobState.RUNNING.value: 0, JobState.WAITING.value: 1}


class Page(Protocol):
    """Where the run is shown, e.g. a `View`."""

    def show(self, state: RunState) -> None:
        """Shows the run as it is now."""


class PanelDisplay:
    """Shows every snapshot where `inner` does, and on a page, at most every `every_s`."""

    def __init__(
        self, inner: Display, page: Page, *, bucket: Bucket, planned_speedup: float | None, every_s: float = EVERY_S
    ) -> None:
        self._inner = inner
        self._page = page
        self._every_s = every_s
        self._bucket = bucket
        self._planned_speedup = planned_speedup
        self._shown_at = float("-inf")
        self._measured: dict[str, float | None] = {}
        self._latest = Latest(bucket=bucket)

    def update(self, snapshot: Snapshot) -> None:
        """Shows how far the run is."""
        self._inner.update(snapshot)
        now = time.monotonic()
        if now - self._shown_at < self._every_s:
            return
        self._shown_at = now
        self._read_one_report(snapshot)
        jobs = sorted(snapshot.jobs, key=lambda job: (_ORDER.get(job.state, 2), job.name))[:_MOST_JOBS]
        self._latest.look(snapshot.progress, [job.name for job in jobs if job.state == JobState.RUNNING.value])
        state = RunState(title=self._bucket.url, facts=self._facts(snapshot), jobs=jobs)
        self._page.show(self._latest.shown_with(state))

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._inner.__exit__(*error)

    def _facts(self, snapshot: Snapshot) -> list[tuple[str, str]]:
        rate = snapshot.clips_per_gpu_hour
        return [
            ("rendered", f"{snapshot.rendered:,} of {snapshot.num_clips:,}"),
            ("failed", f"{snapshot.failed:,}"),
            ("running", f"{snapshot.started:,}"),
            ("jobs", f"{snapshot.jobs_running:,} running, {snapshot.jobs_waiting:,} waiting"),
            ("clips per GPU-hour", "not yet known" if rate is None else f"{rate:,.1f}"),
            ("time left", "not yet known" if snapshot.eta_s is None else duration(snapshot.eta_s)),
            ("broadcast makes it", self._saving()),
        ]

    def _saving(self) -> str:
        measured = [factor for factor in self._measured.values() if factor is not None]
        if measured:
            return f"{sum(measured) / len(measured):.2f} x as fast, measured in {counted(len(measured), 'job')}"
        planned = self._planned_speedup
        return "not yet known" if planned is None else f"{planned:.2f} x as fast, as planned"

    def _read_one_report(self, snapshot: Snapshot) -> None:
        # One at a time: a run has a thousand jobs, and its driver has more to do than to draw.
        ended = (job.name for job in snapshot.jobs if job.state == JobState.ENDED.value)
        name = next((name for name in ended if name not in self._measured), None)
        if name is None:
            return
        try:
            speedup = self._bucket.read_json(layout.job_report(layout.shard_of(name))).get("speedup")
        except (FileNotFoundError, BucketError):
            speedup = None
        # What is damaged costs the picture a number, and nothing else.
        told = speedup if isinstance(speedup, dict) else {}
        found = told.get("measured") or told.get("derived")
        factor = found.get("pab_factor") if isinstance(found, dict) else None
        self._measured[name] = factor if isinstance(factor, float) else None
