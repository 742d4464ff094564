"""The loop beside the jobs: shows how far they are, and starts a shard again whose job ended with clips left.

Nothing depends on it: a run whose driver is gone goes on (SLURM) or is finished by the next submit (local jobs end with it).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cluster.job import CancelledError, Cluster, ClusterError, Job, JobRequest, JobState, UnansweredError
from cluster.run_state import JobLine
from jobs.store.bucket import Bucket, BucketError
from jobs.store.retry import RetryPolicy
from pipeline.exits import CommandError
from pipeline.run.deaths import DEATHS_OF_A_NODE, Deaths
from pipeline.run.display import Display, Snapshot
from pipeline.run.driven import Driven, ShardJob, failed_nodes, why_again
from pipeline.run.jobs_file import StartedJobs
from pipeline.run.machines import claim_folder
from pipeline.run.oversight import Oversight
from pipeline.run.quarantine import write_quarantined
from pipeline.run.run_metrics import Standing
from pipeline.run.shard_clips import ShardClips
from pipeline.run.spending import Spending
from pipeline.run.state import NOTHING_KNOWN, Progress, read_progress
from pipeline.screen import Screen

POLL_S = 0.5
LOOK_POLLS = 4
LOOK_SHARE = 0.05
"""Listing the bucket may take this part of the driver's time at most: a run of millions lists for seconds."""
BUCKET_AWAY_S = 900.0
"""How long the driver goes on without its bucket: longer than jobs do, for it only watches them."""
NOTED_S = 60.0
"""After so many GPU-seconds more, what was spent is noted in the bucket."""
MAX_FRUITLESS = 2
"""How often in a row a shard's job is started again though its last start finished no clip; `--max-attempts` if more."""
MAX_FRUITLESS_RUN = 6
"""Jobs in a row, of any shard, that end without a clip while no other job ends one, before no more are started; 3 x
`--max-attempts` if more."""

RESTARTS = RetryPolicy(total_s=3600.0, first_wait_s=5.0, longest_wait_s=120.0)
"""How long a job that must start again is asked for: a controller comes back, a limit on jobs passes, in less."""
UNANSWERED = RetryPolicy(total_s=600.0, first_wait_s=5.0, longest_wait_s=30.0)
"""How long the first jobs of a submit are looked for when nobody knows whether the cluster took them."""


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
        poll_s: float = POLL_S,
        oversight: Oversight | None = None,
    ) -> None:
        self._cluster = cluster
        self._bucket = bucket
        self._screen = screen
        self._submit = submit
        self._all_keys = keys
        self._restarts = restarts
        self._poll_s = poll_s
        self._shards: list[Driven] = []
        self._ended: list[Job] = []
        self._deaths = Deaths(limit=max(MAX_FRUITLESS_RUN, 3 * submit.max_attempts), avoid=cluster.avoid)
        self._last_death = ""
        self._told_stop = False
        self._num_recorded = 0
        self._told_jobs: tuple[object, ...] = ()
        self._bucket_seen = time.monotonic()
        self._oversight = oversight
        self._spending = Spending(oversight, screen)
        self._clips = ShardClips(bucket, screen)
        self._lines: list[JobLine] = []

    @property
    def jobs(self) -> list[Job]:
        """All jobs of this submit."""
        return [*self._ended, *(shard.job for shard in self._shards)]

    def start(self, asked: Sequence[ShardJob], adopted: Sequence[tuple[ShardJob, Job]] = ()) -> None:
        """Hands the shards' jobs to the cluster, and takes over jobs that nobody drives.

        Raises ClusterError; BucketError only before any job is started.
        """
        # First, so that `cancel` finds the jobs even if the bucket refuses what is written after they are started.
        self._submit.write(self._bucket)
        jobs = self._hand_over([shard.request for shard in asked]) if asked else []
        self._shards = [
            Driven(asked=shard, job=job, tries_left=self._submit.max_attempts * shard.num_clips)
            for shard, job in (*adopted, *zip(asked, jobs, strict=True))
        ]
        try:
            # Now that the cluster has made the folder. The jobs are at work, so a full disk is no reason to leave them.
            claim_folder(Path(self._submit.folder), self._bucket.url)
        except OSError as error:
            self._screen.note(f"cannot note in {self._submit.folder} whose it is: {error}")
        self._tell_jobs()

    def _hand_over(self, requests: Sequence[JobRequest]) -> list[Job]:
        waits = UNANSWERED.waits()
        while True:
            try:
                return self._cluster.submit(requests)
            except UnansweredError as error:
                wait_s = next(waits, None)
                if wait_s is None:
                    raise
                self._screen.note(f"{error}; looked for again in {wait_s:.0f} s")
                time.sleep(wait_s)

    def run(self, display: Display, *, planned_s: float, keep_alive: Callable[[], None]) -> None:
        """Waits until every shard is done or given up; `keep_alive` is called on the way, for what lives beside the driver.

        Raises CommandError when jobs end without rendering anything.
        """
        began = time.monotonic()
        progress = self._look() or NOTHING_KNOWN
        before = len(progress.recorded)
        self._tell_progress(progress)
        look_at, looped_at = 0.0, began
        with display:
            while True:
                self._cluster.poll()
                keep_alive()
                now = time.monotonic()
                self._spending.count(self._shards, now - looped_at)
                if self._oversight:
                    self._oversight.signals.jobs(self._seen_jobs())
                looped_at = now
                self._spending.keep(self._shards, self._take_back)
                if now >= look_at or self._has_ended():
                    progress = self._look() or progress
                    self._tell_progress(progress)
                    took = time.monotonic() - now
                    look_at = now + max(LOOK_POLLS * self._poll_s, took / LOOK_SHARE)
                display.update(self._snapshot(progress, before, elapsed_s=now - began, planned_s=planned_s))
                if all(shard.is_done for shard in self._shards):
                    return
                time.sleep(self._poll_s)

    def _look(self) -> Progress | None:
        # The jobs wait for a bucket that is away; their driver must not be the first to give up.
        try:
            self._see_nodes()
            self._write_jobs()
            progress = read_progress(self._bucket, self._all_keys, self._submit.max_attempts)
            self._attend(progress)
            self._lines = self._clips.lines(self._shards, progress)
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
        try:
            self._submit.with_jobs(self.jobs, self._spending.by_job).finished().write(self._bucket)
        except BucketError as error:
            self._screen.note(f"the bucket does not take the note that this submit has ended: {error}")

    def _tell_jobs(self) -> None:
        # The jobs are at work: their driver does not leave them because a note of them cannot be kept.
        try:
            self._write_jobs()
        except BucketError as error:
            self._screen.note(f"the bucket does not take the names of the jobs, which go on: {error}")

    def _has_ended(self) -> bool:
        now = time.monotonic()
        held = self._deaths.every_start_dies
        return any(shard.has_ended(now) and not (held and shard.wanted) for shard in self._shards)

    def _attend(self, progress: Progress) -> None:
        self._see_progress(progress)
        now = time.monotonic()
        for shard in self._shards:
            if not shard.has_ended(now):
                continue
            if shard.wanted is None:
                self._judge(shard, progress)
            if shard.wanted and not shard.is_done and not self._deaths.every_start_dies and not self._spending.is_over:
                self._start_again(shard, shard.wanted)
        if self._deaths.every_start_dies:
            self._start_no_more()
        self._told_stop = self._deaths.every_start_dies

    def _see_progress(self, progress: Progress) -> None:
        """Learns which jobs have ended clips since the last look: they, and their nodes, are well."""
        if len(progress.recorded) > self._num_recorded:
            self._num_recorded = len(progress.recorded)
            self._deaths.progressed(frozenset())
        for shard in self._shards:
            if shard.is_done or shard.wanted or not (keys := self._clips.known(shard)):
                continue
            ended = sum(len(keys & some) for some in (progress.recorded, progress.not_rendered, progress.again))
            if ended > shard.clips_ended:
                shard.clips_ended = ended
                self._deaths.progressed(shard.job.nodes)

    def _judge(self, shard: Driven, progress: Progress) -> None:
        """Decides what becomes of a shard whose job has ended: done, given up, or wanted again."""
        keys = self._clips.keys(shard)
        quarantined = write_quarantined(self._bucket, keys & progress.started, self._submit.max_attempts)
        left = keys - progress.recorded - progress.not_rendered - quarantined
        # A store may list what was written only later, so each clip that seems to be left is asked for.
        left -= self._bucket.recorded_among(left)
        if not left or shard.job.state is JobState.CANCELLED:
            shard.is_done = True
            return
        tries, nodes = self._submit.max_attempts, shard.job.nodes
        tries_left = tries * len(left) - sum(progress.tries[key] for key in left & progress.again)
        why = shard.job.error() or why_again(left, progress)
        if tries_left < shard.tries_left:
            shard.deaths.clear()
            self._deaths.progressed(nodes)
        else:
            shard.deaths.append(nodes)
            self._learn(shard.job, nodes, why)
        shard.tries_left = tries_left
        fruitless = sum(not self._deaths.blames_node(where) for where in shard.deaths)
        if fruitless > max(MAX_FRUITLESS, tries):
            shard.is_done = True
            self._screen.note(f"{shard.job.name}: given up after {fruitless} starts without a clip: {why}")
            return
        self._screen.note(f"{shard.job.name}: started again, {len(left)} of its clips are left: {why}")
        avoid = failed_nodes(self._bucket, left & progress.again)
        shard.wanted = replace(shard.asked.again, avoid_nodes=avoid, is_restart=True)

    def _learn(self, job: Job, nodes: frozenset[str], why: str) -> None:
        self._last_death = f"{job.name}, says:\n{why}"
        if bad := self._deaths.died(nodes):
            self._screen.note(
                f"{', '.join(sorted(bad))}: {DEATHS_OF_A_NODE} jobs ended there without a clip, so later starts avoid it; "
                f"the last, {self._last_death}"
            )

    def _start_no_more(self) -> None:
        """Waits for the jobs that are at work while every start dies. Raises CommandError when there is none (any more)."""
        died = f"{self._deaths.in_a_row} jobs in a row ended without rendering a clip"
        waiting = [shard for shard in self._shards if shard.job.state is JobState.WAITING]
        if waiting and self._deaths.is_hopeless:
            taken_back = {job.id for job in self._take_back([shard.job for shard in waiting])}
            for shard in [shard for shard in waiting if shard.job.id in taken_back]:
                shard.wanted = shard.asked.request  # it is asked for again if another job ends a clip
            waiting = [shard for shard in waiting if not shard.wanted]
        if not waiting and not any(shard.job.state is JobState.RUNNING for shard in self._shards):
            raise CommandError(f"{died}, and none is at work; the last, {self._last_death}")
        if not self._told_stop:
            self._screen.note(
                f"{died}, so no job is started again until one of those at work ends a clip; the last, {self._last_death}"
            )

    def _take_back(self, jobs: Sequence[Job]) -> list[Job]:
        try:
            return self._cluster.take_back(jobs)
        except ClusterError as error:
            self._screen.note(f"jobs that wait cannot be taken back: {error}")
            return []

    def _start_again(self, shard: Driven, request: JobRequest) -> None:
        """Asks for the job; if it is refused, asks again later, for the other shards need their driver meanwhile."""
        try:
            job = self._ask(replace(request, avoid_nodes=request.avoid_nodes | self._deaths.avoided))
        except CancelledError as error:
            shard.is_done = True
            self._screen.note(f"{shard.job.name}: {error}")
            return
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
        except (UnansweredError, CancelledError):
            raise
        except ClusterError:
            if not request.avoid_nodes:
                raise
            # There may be no other node: then the same one is better than none.
            (job,) = self._cluster.submit([replace(request, avoid_nodes=frozenset())])
        return job

    def _see_nodes(self) -> None:
        """Says once when jobs wait for nodes that cannot be had, and again when that has changed."""
        waiting = [shard for shard in self._shards if shard.job.state is JobState.WAITING and not shard.is_done]
        widest = max((shard.asked.request.num_nodes for shard in waiting), default=0)
        told = self._cluster.shortage([shard.job for shard in waiting], widest) if waiting else None
        if told != self._submit.waits_for:
            self._submit = self._submit.waiting_for(told)
            if waiting:
                self._screen.note(told or "the jobs that wait find enough usable nodes again")

    def _write_jobs(self) -> None:
        submit = self._submit.with_jobs(self.jobs, self._spending.by_job)
        what = submit.jobs, submit.waits_for, int(self._spending.gpu_s / NOTED_S)
        if what != self._told_jobs:
            submit.write(self._bucket)
            self._told_jobs = what
            self._submit = submit

    @property
    def budget_spent(self) -> str | None:
        """How much of the budget is spent, in words, if that is why clips are left; else None."""
        return self._spending.left_clips

    def _tell_progress(self, progress: Progress) -> None:
        if self._oversight:
            standing = Standing(
                num_clips=len(self._all_keys), jobs=self._seen_jobs(), gpu_s=self._spending.gpu_s
            )  # fmt: skip
            self._oversight.look(progress, standing)

    def _seen_jobs(self) -> list[tuple[str, str, str]]:
        return [(job.name, job.id, job.state.value) for job in self.jobs]

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
            gpu_s=self._spending.gpu_s,
            progress=progress,
            jobs=self._lines,
        )
