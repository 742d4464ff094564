"""What the jobs of a driver take of GPU time, and what becomes of them when the budget is spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cluster.job import Job, JobState
from pipeline.run.bill import WARN_AT, Budget
from pipeline.run.driven import Driven
from pipeline.run.oversight import Oversight
from pipeline.screen import Screen


class Spending:
    """Counts GPU-seconds by job, warns when most of the budget is spent, and stops what waits when all is."""

    def __init__(self, oversight: Oversight | None, screen: Screen) -> None:
        self._oversight = oversight
        self._budget: Budget | None = oversight.budget if oversight else None
        self._screen = screen
        self._by_job: dict[str, float] = {}
        self._told = False
        self._stopped = False

    @property
    def by_job(self) -> Mapping[str, float]:
        """GPU-seconds by the name of the job."""
        return self._by_job

    @property
    def gpu_s(self) -> float:
        """GPU-seconds of all jobs."""
        return sum(self._by_job.values())

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent."""
        return self._budget is not None and self._budget.share(self.gpu_s) >= 1

    @property
    def left_clips(self) -> str | None:
        """How much of the budget is spent, in words, if that is why clips are left; else None."""
        return self._budget.told(self.gpu_s) if self._budget and self._stopped else None

    def count(self, shards: Sequence[Driven], seconds: float) -> None:
        """Adds what the jobs at work took in the last seconds."""
        for shard in shards:
            if shard.job.state is JobState.RUNNING:
                request = shard.asked.request
                spent = seconds * request.num_nodes * request.ranks_per_node
                self._by_job[request.name] = self._by_job.get(request.name, 0.0) + spent

    def keep(self, shards: Sequence[Driven], take_back: Callable[[Sequence[Job]], Sequence[Job]]) -> None:
        """Warns when most of the budget is spent; when all is, takes back jobs that wait. Those at work end by themselves."""
        if self._budget is None or self._budget.share(self.gpu_s) < WARN_AT:
            return
        if not self._told:
            self._told = True
            self._screen.note(f"warning: {self._budget.told(self.gpu_s)}")
            self._tell(self._budget.told(self.gpu_s))
        if not self.is_over:
            return
        waiting = [shard for shard in shards if not shard.is_done and shard.job.state is JobState.WAITING]
        taken = take_back([shard.job for shard in waiting]) if waiting else []
        # A local job that waits has no id yet.
        ids, jobs = {job.id for job in taken if job.id}, {id(job) for job in taken}
        stopped = [
            shard
            for shard in shards
            if not shard.is_done and (shard.wanted or shard.job.id in ids or id(shard.job) in jobs)
        ]
        for shard in stopped:
            shard.is_done = True
        if stopped and not self._stopped:
            told = f"{self._budget.told(self.gpu_s)}: no further job starts, those at work go on to their end"
            self._screen.note(told)
            self._tell(told)
        self._stopped = self._stopped or bool(stopped)

    def _tell(self, text: str) -> None:
        if self._oversight:
            self._oversight.tell("budget", text)
