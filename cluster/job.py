"""The vocabulary of `cluster/`: what is asked for, what state it is in, and who runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class ClusterError(Exception):
    """The cluster refused, or cannot be reached; the message says what was asked and what to do."""


class UnansweredError(ClusterError):
    """Nobody knows yet whether the cluster took the jobs: asking once more for jobs of the same names finds out."""


class CancelledError(ClusterError):
    """The run was cancelled meanwhile: its jobs are taken back, and no more are taken."""


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

    `avoid_nodes`: nodes that the job is not to run on, if the cluster can do without them. `is_restart`: a job for the same
    has begun before, so it waits for no other job any more.
    """

    name: str
    call: Callable[[], object]
    num_nodes: int
    ranks_per_node: int
    gpus_per_node: int
    timeout_min: int
    avoid_nodes: frozenset[str] = frozenset()
    is_restart: bool = False


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

    @property
    def nodes(self) -> frozenset[str]:
        """The nodes of its last start; empty if the cluster has none of its own, or does not say."""

    def result(self) -> object | None:
        """Returns rank 0's value, or None when there is none (yet)."""

    def error(self) -> str | None:
        """Returns the end of the job's error output when it was lost, for the driver's message."""


class Cluster(Protocol):
    """Somewhere jobs run."""

    def submit(self, requests: Sequence[JobRequest]) -> list[Job]:
        """Hands over jobs and returns at once. Raises ClusterError when refused, UnansweredError when that is unknown."""

    def refuse_if_cancelled(self) -> None:
        """Raises CancelledError if the run was cancelled since this object was made."""

    def alive(self, noted: Mapping[str, str] | None = None) -> list[Job]:
        """Returns the jobs of the run that wait or run, whoever submitted them, as far as this machine can see them.

        `noted`: by their ids, what those are called of which no record is on this machine.
        """

    def poll(self) -> None:
        """Brings the states of all jobs up to date (and, on this machine, starts what has room)."""

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Ends jobs; those that ended already are left alone."""

    def take_back(self, jobs: Sequence[Job]) -> list[Job]:
        """Ends those of the jobs that have not begun, and returns them. Raises ClusterError."""

    def avoid(self, nodes: frozenset[str]) -> frozenset[str]:
        """Keeps jobs that start from now on off these nodes, as far as enough others are left; returns those it keeps off."""

    def shortage(self, jobs: Sequence[Job], num_nodes: int) -> str | None:
        """Says which of the jobs, each of so many nodes, waits for nodes that cannot be had, and why.

        None if all find enough nodes, free or not, and where that is not known. What is said may be some seconds old.
        """
