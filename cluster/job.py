"""The vocabulary of `cluster/`: what is asked for, what state it is in, and who runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class ClusterError(Exception):
    """The cluster refused, or cannot be reached; the message says what was asked and what to do."""


class JobState(Enum):
    """Where a job is. Taken from SLURM's queue or from this machine's processes, never from Dask."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"
    """Left the queue with its result written."""
    LOST = "lost"
    """Left the queue with no result: killed, crashed, node gone and not requeued."""
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """One job: `call` runs once on every rank (`num_nodes * ranks_per_node` processes); rank 0's value is the result.

    `avoid_nodes`: nodes that the job is not to run on, if the cluster can do without them.
    """

    name: str
    call: Callable[[], object]
    num_nodes: int
    ranks_per_node: int
    gpus_per_node: int
    timeout_min: int
    avoid_nodes: frozenset[str] = frozenset()


class Job(Protocol):
    """A submitted job."""

    @property
    def name(self) -> str:
        """The name asked for, e.g. `job-00007`."""

    @property
    def id(self) -> str:
        """The cluster's own id (`1234_5` on SLURM, the process id here); empty while it waits for a place here."""

    @property
    def state(self) -> JobState:
        """Its last polled state."""

    def result(self) -> object | None:
        """Returns rank 0's value, or None when there is none (yet)."""

    def error(self) -> str | None:
        """Returns the end of the job's error output when it was lost, for the driver's message."""


class Cluster(Protocol):
    """Somewhere jobs run."""

    def submit(self, requests: Sequence[JobRequest]) -> list[Job]:
        """Hands over jobs and returns at once. Raises ClusterError when refused."""

    def poll(self) -> None:
        """Brings the states of all jobs up to date (and, on this machine, starts what has room)."""

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Ends jobs; those that ended already are left alone."""
