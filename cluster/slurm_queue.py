"""Reads SLURM's queue: one squeue for all jobs, which needs no accounting and never shows a requeued job as ended."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.job import JobState
from cluster.slurm_settings import ask_slurm

_FIELDS = "JobArrayID:|,State:|,RestartCnt:|,Reason:|,Name:"

_WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_LEFT = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE", "REVOKED"}
# SLURM shows these for a while for a job that it then starts again.
_MAYBE_LEFT = {"NODE_FAIL", "BOOT_FAIL", "PREEMPTED"}

_LAUNCH_FAILED = "launch failed requeued held"
_STUCK = (
    "held",
    "JobHeld",
    "DependencyNeverSatisfied",
    "BadConstraints",
    "PartitionConfig",
    "PartitionNodeLimit",
    "PartitionTimeLimit",
    "PartitionDown",
    "PartitionInactive",
    "AccountNotAllowed",
    "QOSNotAllowed",
    "InvalidAccount",
    "InvalidQOS",
    "MaxCpuPerAccount",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueRow:
    """One job as the queue shows it. `restarts`: how often SLURM has started it anew."""

    state: str
    restarts: int
    reason: str
    job_name: str

    @property
    def live_state(self) -> JobState | None:
        """WAITING or RUNNING; None when the job has left. COMPLETING is running: its processes still write."""
        if self.state in _LEFT | _MAYBE_LEFT:
            return None
        return JobState.WAITING if self.state in _WAITING else JobState.RUNNING

    @property
    def may_come_back(self) -> bool:
        """Whether SLURM may be about to start it again."""
        return self.state in _MAYBE_LEFT

    @property
    def is_held_by_failed_launch(self) -> bool:
        """Whether SLURM holds it only because a node could not start it."""
        return self.live_state is JobState.WAITING and _LAUNCH_FAILED in self.reason

    @property
    def is_stuck(self) -> bool:
        """Whether it waits for a person rather than for a place."""
        return self.live_state is JobState.WAITING and any(word in self.reason for word in _STUCK)


def read_queue() -> dict[str, QueueRow]:
    """Returns this user's jobs by id (`12_3` in an array), those that ended in the last minutes too. Raises ClusterError."""
    answer = ask_slurm("squeue", "--noheader", "--me", "--all", "--array", "--states=all", f"--Format={_FIELDS}")
    rows = {}
    for line in answer.splitlines():
        job_id, state, restarts, reason, job_name = line.split("|", 4)
        rows[job_id] = QueueRow(state=state, restarts=int(restarts), reason=reason, job_name=job_name.strip())
    return rows
