"""The loop beside the jobs: shows how far they are, and starts a shard again whose job ended with clips left.

Nothing depends on it: a run whose driver is gone goes on (SLURM) or is finished by the next submit (local jobs end with it).
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.job import Cluster, Job, JobRequest, JobState
from jobs import layout
from jobs.bucket import Bucket, BucketError
from manifests.read import read_clips
from pipeline.display import Display, Snapshot
from pipeline.exits import CommandError
from pipeline.jobs_file import StartedJobs
from pipeline.screen import Screen
from pipeline.state import NOTHING_KNOWN, Progress, read_progress

POLL_S = 0.5
LOOK_S = 2.0
LOOK_SHARE = 0.05
"""Listing the bucket may take this part of the driver's time at most: a run of millions lists for seconds."""
BUCKET_AWAY_S = 900.0
"""How long the driver goes on without its bucket: longer than jobs do, for it only watches them."""
MAX_FRUITLESS = 2
"""How often in a row a shard's job is started again though its last start finished no clip."""
MAX_FRUITLESS_RUN = 6
"""Jobs in a row, of any shard, that end without a clip: then something else is wrong than a clip."""

_OPEN = (JobState.WAITING, JobState.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJob:
    """What is asked of the cluster for one shard."""

    shard: int
    num_clips: int
    request: JobRequest


@dataclass(slots=True)
class _Driven:
    asked: ShardJob
    job: Job
    left: int
    fruitless: int = 0
    is_done: bool = False


class Driver:
    """Drives the shards of one submit to their end."""

    def __init__(
        self, cluster: Cluster, bucket: Bucket, *, screen: Screen, submit: StartedJobs, num_clips: int
    ) -> None:
        self._cluster = cluster
        self._bucket = bucket
        self._screen = screen
        self._submit = submit
        self._num_clips = num_clips
        self._shards: list[_Driven] = []
        self._ended: list[Job] = []
        self._fruitless_run = 0
        self._told_ids: tuple[tuple[str, str], ...] = ()
        self._bucket_seen = time.monotonic()

    @property
    def jobs(self) -> list[Job]:
        """All jobs of this submit."""
        return [*self._ended, *(shard.job for shard in self._shards)]

    def start(self, asked: Sequence[ShardJob]) -> None:
        """Hands the shards' jobs to the cluster. Raises ClusterError; BucketError only before any job is started."""
        # First, so that `cancel` finds the jobs even if the bucket refuses what is written after they are started.
        self._submit.write(self._bucket)
        jobs = self._cluster.submit([shard.request for shard in asked])
        self._shards = [
            _Driven(asked=shard, job=job, left=shard.num_clips) for shard, job in zip(asked, jobs, strict=True)
        ]
        self._tell_jobs()

    def run(self, display: Display, *, planned_s: float, keep_alive: Callable[[], None]) -> None:
        """Waits until every shard is done or given up; `keep_alive` is called on the way, for what lives beside the driver.

        Raises CommandError when jobs end without rendering anything.
        """
        began = time.monotonic()
        progress = self._look() or NOTHING_KNOWN
        before = len(progress.recorded)
        look_at = 0.0
        with display:
            while True:
                self._cluster.poll()
                keep_alive()
                now = time.monotonic()
                if now >= look_at or self._has_ended():
                    progress = self._look() or progress
                    took = time.monotonic() - now
                    look_at = now + max(LOOK_S, took / LOOK_SHARE)
                display.update(self._snapshot(progress, before, elapsed_s=now - began, planned_s=planned_s))
                if all(shard.is_done for shard in self._shards):
                    return
                time.sleep(POLL_S)

    def _look(self) -> Progress | None:
        # The jobs wait for a bucket that is away; their driver must not be the first to give up.
        try:
            self._write_jobs()
            progress = read_progress(self._bucket)
            self._attend(progress)
        except BucketError as error:
            away_s = time.monotonic() - self._bucket_seen
            if away_s > BUCKET_AWAY_S:
                raise
            self._screen.note(f"the jobs go on without a look at them: {error}")
            return None
        self._bucket_seen = time.monotonic()
        return progress

    def end(self) -> None:
        """Notes in the bucket that this submit has no driver any more."""
        self._tell_jobs()
        self._submit.finished().write(self._bucket)

    def _tell_jobs(self) -> None:
        # The jobs are at work: their driver does not leave them because a note of them cannot be kept.
        try:
            self._write_jobs()
        except BucketError as error:
            self._screen.note(f"the bucket does not take the names of the jobs, which go on: {error}")

    def _has_ended(self) -> bool:
        return any(shard.job.state not in _OPEN for shard in self._shards if not shard.is_done)

    def _attend(self, progress: Progress) -> None:
        for shard in self._shards:
            if not shard.is_done and shard.job.state not in _OPEN:
                self._close_or_restart(shard, progress)

    def _close_or_restart(self, shard: _Driven, progress: Progress) -> None:
        keys = shard_keys(self._bucket, shard.asked.shard)
        left = len(keys - progress.recorded - progress.not_rendered)
        if left == 0 or shard.job.state is JobState.CANCELLED:
            shard.is_done = True
            return
        fruitful = left < shard.left
        shard.fruitless = 0 if fruitful else shard.fruitless + 1
        self._fruitless_run = 0 if fruitful else self._fruitless_run + 1
        shard.left = left
        why = shard.job.error() or "it ended with clips left"
        if self._fruitless_run >= MAX_FRUITLESS_RUN:
            self._cluster.cancel([other.job for other in self._shards if not other.is_done])
            raise CommandError(
                f"{self._fruitless_run} jobs in a row ended without rendering a clip, so the rest is cancelled; the last, "
                f"{shard.job.name}, says:\n{why}"
            )
        if shard.fruitless > MAX_FRUITLESS:
            shard.is_done = True
            self._screen.note(f"{shard.job.name}: given up after {shard.fruitless} starts without a clip: {why}")
            return
        self._screen.note(f"{shard.job.name}: started again, {left} of its clips are left: {why}")
        self._ended.append(shard.job)
        (shard.job,) = self._cluster.submit([shard.asked.request])

    def _write_jobs(self) -> None:
        submit = self._submit.with_jobs(self.jobs)
        if submit.jobs != self._told_ids:
            submit.write(self._bucket)
            self._told_ids = submit.jobs
            self._submit = submit

    def _snapshot(self, progress: Progress, before: int, *, elapsed_s: float, planned_s: float) -> Snapshot:
        states = [shard.job.state for shard in self._shards]
        return Snapshot(
            num_clips=self._num_clips,
            rendered=len(progress.recorded),
            failed=len(progress.not_rendered),
            started=len(progress.started),
            new=len(progress.recorded) - before,
            jobs_running=states.count(JobState.RUNNING),
            jobs_waiting=states.count(JobState.WAITING),
            elapsed_s=elapsed_s,
            planned_s=planned_s,
        )


def shard_keys(bucket: Bucket, shard: int) -> frozenset[str]:
    """Returns the keys of a shard's clips. Raises BucketError."""
    return frozenset(clip.key for clip in read_clips(io.BytesIO(bucket.read_present(layout.shard(shard)))))
