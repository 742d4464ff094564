"""Waiting for things with a bound."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from cluster.job import Cluster, Job, JobState

_OVER = (JobState.ENDED, JobState.LOST, JobState.CANCELLED)
_T = TypeVar("_T")


def wait_until(condition: Callable[[], _T], timeout_s: float = 60) -> _T:
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end, f"did not happen in {timeout_s} s"
        time.sleep(0.02)
    return value


def wait_over(cluster: Cluster, jobs: Sequence[Job], timeout_s: float = 90) -> None:
    def over() -> bool:
        cluster.poll()
        return all(job.state in _OVER for job in jobs)

    wait_until(over, timeout_s)


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the latter: it ended between opening and reading
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
