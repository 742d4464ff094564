"""What is asked of the cluster for the shards of a submit: for new ones, and for jobs that are taken over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.job import Job, JobRequest
from jobs.progress import ClipProgress
from jobs.settings import JobSettings
from manifests.shards import Shard
from pipeline.run.driven import ShardJob
from pipeline.run.machines import job_request
from pipeline.run.settings import MachineSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJobs:
    """Makes requests. `settings`: what all jobs of the submit get; `progress`: whom they tell of their clips."""

    settings: JobSettings
    machines: MachineSettings
    progress: ClipProgress

    def new(self, shards: Sequence[Shard], numbers: Mapping[int, int], *, again: bool) -> list[ShardJob]:
        """Returns what is asked for the planned shards. `numbers`: of each by its index, as it is named in the bucket."""
        return [
            self._shard_job(number, shards[index].num_clips, planned_s=shards[index].seconds, again=again)
            for index, number in numbers.items()
        ]

    def taken_over(self, orphans: Mapping[int, tuple[Job, frozenset[str]]]) -> list[tuple[ShardJob, Job]]:
        """Returns jobs of an earlier submit, with what is asked if they must start again."""
        planned_s = 60.0 * self.machines.job_minutes
        return [
            (self._shard_job(number, len(keys), planned_s=planned_s, again=True), job)
            for number, (job, keys) in orphans.items()
        ]

    def _shard_job(self, number: int, num_clips: int, *, planned_s: float, again: bool) -> ShardJob:
        def request(*, again: bool) -> JobRequest:
            return job_request(
                self.settings, self.machines, shard=number, planned_s=planned_s, progress=self.progress, again=again
            )

        return ShardJob(shard=number, num_clips=num_clips, request=request(again=again), again=request(again=True))
