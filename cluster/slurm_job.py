"""A job on SLURM: where the queue and its files say it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.job import ClusterError, JobState
from cluster.job_files import error_tail, rank_logs, rank_trace, rank_zero_attempt, rank_zero_value
from cluster.slurm_queue import QueueRow, node_names

_ABSENT_ANSWERS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """What identifies a submitted job, also to a later driver.

    `job_name`: its array's name in the queue. `submitted_at`: when the controller took it, in seconds since 1970; None if
    that was not learned.
    """

    name: str
    id: str
    num_ranks: int
    job_name: str
    folder: Path
    submitted_at: int | None = None

    def is_same(self, row: QueueRow) -> bool:
        """Whether a row of the queue under its id is this job, and not another one to which the id was given later."""
        if row.job_name != self.job_name:
            return False
        if self.submitted_at is None or row.submitted_at is None:
            return True
        # A requeue counts as a new submission of the same job.
        requeued = row.restarts > 0 or row.is_held_by_failed_launch
        return row.submitted_at >= self.submitted_at if requeued else row.submitted_at == self.submitted_at


class SlurmJob:
    """A submitted job. States come from the queue while it is there; whether it ended well, from its result file."""

    def __init__(self, submitted: Submitted, *, avoid_nodes: frozenset[str] = frozenset()) -> None:
        self.submitted = submitted
        self.avoid_nodes = avoid_nodes
        self.cancel_asked = False
        self._state = JobState.WAITING
        self._last_row: QueueRow | None = None
        self._num_absent = 0
        self._left_at_s: float | None = None
        self._restarts = 0
        self._nodes: tuple[str, frozenset[str]] = ("", frozenset())

    @property
    def name(self) -> str:
        """The name asked for."""
        return self.submitted.name

    @property
    def id(self) -> str:
        """SLURM's id, `1234_5` in an array."""
        return self.submitted.id

    @property
    def state(self) -> JobState:
        """Its last polled state."""
        return self._state

    @property
    def nodes(self) -> frozenset[str]:
        """The nodes of its last start; none if it has had none, or if SLURM does not say."""
        short = self._last_row.nodes if self._last_row else ""
        if short != self._nodes[0]:
            try:
                self._nodes = (short, node_names(short))
            except ClusterError:
                return frozenset()
        return self._nodes[1]

    @property
    def is_over(self) -> bool:
        """Whether it needs no more polling. A lost job does: SLURM may yet start it again."""
        return self._state in (JobState.ENDED, JobState.CANCELLED)

    def result(self) -> object | None:
        """Returns rank 0's value, or None when there is none (yet). Raises ClusterError if another version wrote it."""
        return rank_zero_value(self.submitted.folder, self.id) if self._state is JobState.ENDED else None

    def error(self) -> str | None:
        """Returns the traceback or the end of the error output of a lost job, after SLURM's last word on it."""
        if self._state is not JobState.LOST:
            return None
        folder, ranks = self.submitted.folder, range(self.submitted.num_ranks)
        said = rank_trace(folder, self.id, ranks) or error_tail(rank_logs(folder, self.id, ranks))
        last = f"SLURM's last state: {self._last_row.state}" if self._last_row else "not in SLURM's queue"
        return f"{last}\n{said or f'no error output; the logs are in {folder}'}"

    def see(self, row: QueueRow | None, *, now_s: float, grace_s: float) -> None:
        """Takes in one answer of the queue. `grace_s`: how late a result may become visible on a shared folder."""
        if row is not None and not self.submitted.is_same(row):
            row = None  # a controller that lost its state gives ids a second time
        if row is None:
            self._num_absent += 1
            if self._num_absent < _ABSENT_ANSWERS:
                return
        else:
            self._num_absent = 0
            self._last_row = row
            self._restarts = max(self._restarts, row.restarts)
            if row.live_state is not None:
                # Whatever results lie there are of an earlier start.
                self._state, self._left_at_s = row.live_state, None
                return
        if self._left_at_s is None:
            self._left_at_s = now_s
        self._judge(row, waited_s=now_s - self._left_at_s, grace_s=grace_s)

    def _judge(self, row: QueueRow | None, *, waited_s: float, grace_s: float) -> None:
        attempt = rank_zero_attempt(self.submitted.folder, self.id)
        if attempt is not None and attempt >= self._restarts:
            self._state = JobState.ENDED
        elif self._last_row is not None and self._last_row.state == "CANCELLED":
            self._state = JobState.CANCELLED
        elif row is not None and row.may_come_back:
            self._state = JobState.WAITING if waited_s < 4 * grace_s else JobState.LOST
        elif waited_s >= grace_s:
            self._state = JobState.CANCELLED if self.cancel_asked else JobState.LOST
