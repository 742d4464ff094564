"""The loop beside the jobs: shows how far they are, and starts a shard again whose job ended with clips left.

Nothing depends on it: a run whose driver is gone goes on (SLURM) or is finished by the next submit (local jobs end with it).
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from cluster.job import Cluster, ClusterError, Job, JobRequest, JobState
from cluster.run_state import JobLine
from jobs.store import layout
from jobs.store.bucket import Bucket, BucketError
from jobs.store.retry import RetryPolicy
from manifests.read import read_clips
from pipeline.exits import CommandError
from pipeline.run.display import Display, Snapshot
from pipeline.run.jobs_file import StartedJobs
from pipeline.run.quarantine import write_quarantined
from pipeline.run.state import NOTHING_KNOWN, Progress, read_progress
from pipeline.screen import Screen

POLL_S = 0.5
LOOK_S = 2.0
LOOK_SHARE = 0.05
"""Listing the bucket may take this part of the driver's time at most: a run of millions lists for seconds."""
BUCKET_AWAY_S = 900.0
"""How long the driver goes on without its bucket: longer than jobs do, for it only watches them."""
KEYS_A_LOOK = 8
"""How many shards are read at a look, for the lines of their jobs."""
MAX_FRUITLESS = 2
"""How often in a row a shard's job is started again though its last start finished no clip; `--max-attempts` if more."""
MAX_FRUITLESS_RUN = 6
"""Jobs in a row, of any shard, that end without a clip, before it is no clip's fault; 3 x `--max-attempts` if more."""

RESTARTS = RetryPolicy(total_s=3600.0, first_wait_s=5.0, longest_wait_s=120.0)
"""How long a job that must start again is asked for: a controller comes back, a limit on jobs passes, in less."""

_OPEN = (JobState.WAITING, JobState.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJob:
    """What is asked of the cluster for one shard. `again`: for a later start, which also tries failed clips again."""

    shard: int
    num_clips: int
    request: JobRequest
    again: JobRequest


@dataclass(slots=True)
class _Driven:
    asked: ShardJob
    job: Job
    tries_left: int
    fruitless: int = 0
    is_done: bool = False
    wanted: JobRequest | None = None
    waits: Iterator[float] | None = None
    ask_at: float = 0.0

    def has_ended(self, now: float) -> bool:
        """Whether its job has ended and something is to be done about it now."""
        return not self.is_done and self.job.state not in _OPEN and now >= self.ask_at


class Driver:
    """Drives the shards of one submit to their end."""

    def __init__(
        self,
        cluster: Cluster,
        bucket: Bucket,
        *,
        screen: Screen,
        submit: StartedJobs,
        keys: frozenset[str],
        restarts: RetryPolicy = RESTARTS,
    ) -> None:
        self._cluster = cluster
        self._bucket = bucket
        self._screen = screen
        self._submit = submit
        self._all_keys = keys
        self._restarts = restarts
        self._shards: list[_Driven] = []
        self._ended: list[Job] = []
        self._fruitless_run = 0
        self._told_ids: tuple[tuple[str, str], ...] = ()
        self._bucket_seen = time.monotonic()
        self._gpu_s = 0.0
        self._keys: dict[int, frozenset[str]] = {}
        self._lines: list[JobLine] = []

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
            _Driven(asked=shard, job=job, tries_left=self._submit.max_attempts * shard.num_clips)
            for shard, job in zip(asked, jobs, strict=True)
        ]
        self._tell_jobs()

    def run(self, display: Display, *, planned_s: float, keep_alive: Callable[[], None]) -> None:
        """Waits until every shard is done or given up; `keep_alive` is called on the way, for what lives beside the driver.

        Raises CommandError when jobs end without rendering anything.
        """
        began = time.monotonic()
        progress = self._look() or NOTHING_KNOWN
        before = len(progress.recorded)
        look_at, looped_at = 0.0, began
        with display:
            while True:
                self._cluster.poll()
                keep_alive()
                now = time.monotonic()
                self._gpu_s += (now - looped_at) * self._running_ranks()
                looped_at = now
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
            progress = read_progress(self._bucket, self._all_keys, self._submit.max_attempts)
            self._attend(progress)
            self._lines = self._job_lines(progress)
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
        now = time.monotonic()
        return any(shard.has_ended(now) for shard in self._shards)

    def _attend(self, progress: Progress) -> None:
        now = time.monotonic()
        for shard in self._shards:
            if not shard.has_ended(now):
                continue
            if shard.wanted is None:
                self._close_or_restart(shard, progress)
            else:
                self._start_again(shard, shard.wanted)

    def _close_or_restart(self, shard: _Driven, progress: Progress) -> None:
        keys = self._shard_keys(shard)
        quarantined = write_quarantined(self._bucket, keys & progress.started, self._submit.max_attempts)
        left = keys - progress.recorded - progress.not_rendered - quarantined
        # A store may list what was written only later, so each clip that seems to be left is asked for.
        left -= self._bucket.recorded_among(left)
        if not left or shard.job.state is JobState.CANCELLED:
            shard.is_done = True
            return
        tries = self._submit.max_attempts
        tries_left = tries * len(left) - sum(progress.tries[key] for key in left & progress.again)
        fruitful = tries_left < shard.tries_left
        shard.fruitless = 0 if fruitful else shard.fruitless + 1
        self._fruitless_run = 0 if fruitful else self._fruitless_run + 1
        shard.tries_left = tries_left
        why = shard.job.error() or _why_again(left, progress)
        if self._fruitless_run >= max(MAX_FRUITLESS_RUN, 3 * tries):
            self._cluster.cancel([other.job for other in self._shards if not other.is_done])
            raise CommandError(
                f"{self._fruitless_run} jobs in a row ended without rendering a clip, so the rest is cancelled; the last, "
                f"{shard.job.name}, says:\n{why}"
            )
        if shard.fruitless > max(MAX_FRUITLESS, tries):
            shard.is_done = True
            self._screen.note(f"{shard.job.name}: given up after {shard.fruitless} starts without a clip: {why}")
            return
        self._screen.note(f"{shard.job.name}: started again, {len(left)} of its clips are left: {why}")
        avoid = failed_nodes(self._bucket, left & progress.again)
        self._start_again(shard, replace(shard.asked.again, avoid_nodes=avoid))

    def _start_again(self, shard: _Driven, request: JobRequest) -> None:
        """Asks for the job; if it is refused, asks again later, for the other shards need their driver meanwhile."""
        try:
            job = self._ask(request)
        except ClusterError as error:
            shard.wanted = request
            shard.waits = shard.waits or self._restarts.waits()
            wait_s = next(shard.waits, None)
            if wait_s is None:
                shard.is_done = True
                self._screen.note(
                    f"{shard.job.name}: given up, refused for {self._restarts.total_s / 60:.0f} minutes: {error}"
                )
                return
            shard.ask_at = time.monotonic() + wait_s
            self._screen.note(f"{shard.job.name}: refused, asked for again in {wait_s:.0f} s: {error}")
            return
        self._ended.append(shard.job)
        shard.job, shard.wanted, shard.waits = job, None, None

    def _ask(self, request: JobRequest) -> Job:
        try:
            (job,) = self._cluster.submit([request])
        except ClusterError:
            if not request.avoid_nodes:
                raise
            # There may be no other node: then the same one is better than none.
            (job,) = self._cluster.submit([replace(request, avoid_nodes=frozenset())])
        return job

    def _write_jobs(self) -> None:
        submit = self._submit.with_jobs(self.jobs)
        if submit.jobs != self._told_ids:
            submit.write(self._bucket)
            self._told_ids = submit.jobs
            self._submit = submit

    def _running_ranks(self) -> int:
        requests = [shard.asked.request for shard in self._shards if shard.job.state is JobState.RUNNING]
        return sum(request.num_nodes * request.ranks_per_node for request in requests)

    def _shard_keys(self, shard: _Driven) -> frozenset[str]:
        if shard.asked.shard not in self._keys:
            self._keys[shard.asked.shard] = shard_keys(self._bucket, shard.asked.shard)
        return self._keys[shard.asked.shard]

    def _job_lines(self, progress: Progress) -> list[JobLine]:
        # What a shard holds is read when its job has begun, of a few at each look: there may be thousands.
        begun = [shard for shard in self._shards if shard.job.state is not JobState.WAITING]
        for shard in [shard for shard in begun if shard.asked.shard not in self._keys][:KEYS_A_LOOK]:
            self._shard_keys(shard)
        return [_job_line(shard, self._keys.get(shard.asked.shard, frozenset()), progress) for shard in self._shards]

    def _snapshot(self, progress: Progress, before: int, *, elapsed_s: float, planned_s: float) -> Snapshot:
        states = [shard.job.state for shard in self._shards]
        return Snapshot(
            num_clips=len(self._all_keys),
            rendered=len(progress.recorded),
            failed=len(progress.not_rendered),
            started=len(progress.started),
            new=len(progress.recorded) - before,
            jobs_running=states.count(JobState.RUNNING),
            jobs_waiting=states.count(JobState.WAITING),
            elapsed_s=elapsed_s,
            planned_s=planned_s,
            gpu_s=self._gpu_s,
            jobs=self._lines,
        )


def _job_line(shard: _Driven, keys: frozenset[str], progress: Progress) -> JobLine:
    done, failed = len(keys & progress.recorded), len(keys & progress.not_rendered)
    running = len(keys & progress.started)
    return JobLine(
        name=shard.asked.request.name,
        state=shard.job.state.value,
        done=done,
        failed=failed,
        running=running,
        queued=max(0, shard.asked.num_clips - done - failed - running),
    )


def _why_again(left: Collection[str], progress: Progress) -> str:
    failed = len(progress.again.intersection(left))
    return f"{failed} of them failed and are tried on another node" if failed else "it ended with clips left"


def failed_nodes(bucket: Bucket, keys: Collection[str]) -> frozenset[str]:
    """Returns the nodes on which these clips failed. Raises BucketError."""
    failures = bucket.failures() if keys else {}
    documents = [bucket.read_json(layout.failure(key, max(failures[key]))) for key in keys if key in failures]
    nodes = {str(document.get("job", {}).get("node", "")) for document in documents}
    return frozenset(nodes - {""})


def shard_keys(bucket: Bucket, shard: int) -> frozenset[str]:
    """Returns the keys of a shard's clips. Raises BucketError."""
    return frozenset(clip.key for clip in read_clips(io.BytesIO(bucket.read_present(layout.shard(shard)))))
