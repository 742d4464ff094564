"""Runs jobs on this machine, a bounded number at once.

A local job lives no longer than its driver: if the driver is killed, the job's ranks end within about two seconds, so the
next submit finds the GPUs free and goes on from the records. `timeout_min` is SLURM's; here nothing waits for the place.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit

from cluster.devices import threads_per_rank, visible_gpus
from cluster.environment import for_child, variables
from cluster.job import ClusterError, Job, JobRequest, JobState
from cluster.job_files import error_tail, private_folder, rank_logs, rank_zero_attempt, rank_zero_value
from cluster.local_driver import note_driver
from cluster.rank import RankCall

_AFTER_FIRST_EXIT_S = 300.0
_CANCEL_S = 9.0
_START_AGAIN_S = 2.0
_REFUSED_S = 3600.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """What a job gets of this machine."""

    gpus: tuple[str, ...]
    num_threads: int


class _GroupExecutor(submitit.LocalExecutor):  # type: ignore[misc]
    """submitit's executor with our own group process: its own lets the ranks run on when one of them dies."""

    def __init__(self, folder: Path, *, name: str, num_ranks: int, place: _Place) -> None:
        super().__init__(folder)
        self.update_parameters(tasks_per_node=num_ranks)
        self._throttling = 0.0
        self._name = name
        self._place = place

    def _submit_command(self, command: str) -> submitit.LocalJob[dict[str, object]]:
        num_ranks = self._num_tasks()
        with group_log(self.folder, self._name).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "cluster.local_group", self.folder, str(os.getpid()), str(_AFTER_FIRST_EXIT_S)],
                env=_group_environment(command, num_ranks=num_ranks, place=self._place),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is the driver's to handle
            )
        return submitit.LocalJob(self.folder, str(process.pid), tasks=range(num_ranks), process=process)


def _group_environment(command: str, *, num_ranks: int, place: _Place) -> dict[str, str]:
    return for_child(
        # A thread that spins at a barrier holds the core which the thread it waits for needs: on a busy machine a clip
        # then takes ten times as long.
        defaults={"OMP_NUM_THREADS": str(place.num_threads), "OMP_WAIT_POLICY": "passive"},
        changes={
            "CUDA_VISIBLE_DEVICES": ",".join(place.gpus),
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_NTASKS": str(num_ranks),
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
        },
    )


def group_log(folder: Path, name: str) -> Path:
    """Returns where a job's group process says why it ended its ranks."""
    return folder / f"{name}_group.log"


class LocalJob:
    """A job on this machine. Its id is the pid of its group process."""

    def __init__(self, request: JobRequest, folder: Path) -> None:
        self.request = request
        self.gpus: tuple[str, ...] = ()
        self._folder = folder
        self._state = JobState.WAITING
        self._process: subprocess.Popen[bytes] | None = None
        self._refused_since: float | None = None
        self._refusal = ""
        self._start_at = 0.0

    @property
    def name(self) -> str:
        """The name asked for."""
        return self.request.name

    @property
    def id(self) -> str:
        """The group process's pid; empty while the job waits for a place."""
        return str(self._process.pid) if self._process else ""

    @property
    def state(self) -> JobState:
        """Its last polled state."""
        return self._state

    @property
    def nodes(self) -> frozenset[str]:
        """None: there is no other machine to turn to."""
        return frozenset()

    @property
    def num_ranks(self) -> int:
        """Ranks on this machine: those of all the nodes asked for."""
        return self.request.num_nodes * self.request.ranks_per_node

    def result(self) -> object | None:
        """Returns rank 0's value, or None when there is none (yet)."""
        return rank_zero_value(self._folder, self.id) if self._state is JobState.ENDED else None

    def error(self) -> str | None:
        """Returns why the group ended, with the end of the fallen rank's error output; None if the job is not lost."""
        if self._state is not JobState.LOST:
            return None
        if self._process is None:
            return f"it could not be started: {self._refusal}"
        logs = [group_log(self._folder, self.name), *rank_logs(self._folder, self.id, range(self.num_ranks))]
        return error_tail(logs) or f"no error output; the logs are in {self._folder}"

    def start(self, place: _Place) -> bool:
        """Starts the group process; False if the system does not let it, as with a full disk, so that it goes on waiting.

        It is tried again now and then, and lost if that goes on for `_REFUSED_S`.
        """
        now = time.monotonic()
        if now < self._start_at:
            return False
        try:
            executor = _GroupExecutor(self._folder, name=self.name, num_ranks=self.num_ranks, place=place)
            self._process = executor.submit(RankCall(call=self.request.call))._process
        except OSError as error:
            if self._refused_since is None:
                self._refused_since = now
                _LOG.warning("%s waits, it cannot be started in %s: %s", self.name, self._folder, error)
            self._refusal, self._start_at = str(error), now + _START_AGAIN_S
            if now - self._refused_since > _REFUSED_S:
                self._state = JobState.LOST
            return False
        self._refused_since = None
        self.gpus = place.gpus
        self._state = JobState.RUNNING
        return True

    def poll(self) -> None:
        """Takes the state from the process and the result file."""
        if self._state is JobState.RUNNING and self._process and self._process.poll() is not None:
            has_result = rank_zero_attempt(self._folder, self.id) is not None
            self._state = JobState.ENDED if has_result else JobState.LOST

    def terminate(self) -> None:
        """Tells the group process to end its ranks; a job that waits never starts."""
        if self._process:
            self._process.terminate()
        self._state = JobState.CANCELLED

    def wait_ended(self, timeout_s: float) -> None:
        """Waits for the group process; kills it if it takes longer, whereupon its ranks end by themselves."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class LocalCluster:
    """Runs jobs on this machine, at most `max_parallel_jobs` at once, each with GPUs of its own where there are any.

    Everything lies in a new folder (0700) under `folder`: process ids, by which submitit names its files, repeat.
    """

    def __init__(self, folder: Path, max_parallel_jobs: int) -> None:
        if max_parallel_jobs < 1:
            raise ClusterError(f"max_parallel_jobs={max_parallel_jobs}: at least 1 job must be allowed to run")
        self.folder = private_folder(folder / f"local-{uuid.uuid4().hex[:12]}")
        try:
            note_driver(self.folder)
        except OSError as error:
            raise ClusterError(f"cannot write into {self.folder}: {error}; make room there") from error
        self._max_parallel_jobs = max_parallel_jobs
        self._gpus = visible_gpus(variables())
        self._jobs: list[LocalJob] = []

    def submit(self, requests: Sequence[JobRequest]) -> list[Job]:
        """Takes jobs in and starts those that have room. Raises ClusterError for one that this machine can never run."""
        for request in requests:
            needed = _num_gpus(request)
            if self._gpus and needed > len(self._gpus):
                raise ClusterError(
                    f"{request.name} asks for {needed} GPUs, this machine offers {len(self._gpus)} "
                    f"({','.join(self._gpus)}); ask for fewer GPUs per job, or use a SLURM cluster"
                )
        jobs = [LocalJob(request, self.folder) for request in requests]
        self._jobs += jobs
        self.poll()
        return list(jobs)

    def refuse_if_cancelled(self) -> None:
        """Does nothing: `cancel` ends a local run's processes, also one that waits, by a signal."""

    def alive(self, noted: Mapping[str, str] | None = None) -> list[Job]:
        """Returns none: local jobs end with their driver."""
        return []

    def poll(self) -> None:
        """Brings the states up to date and starts what has room, in the order of submission."""
        for job in self._jobs:
            job.poll()
        for job in self._jobs:
            if job.state is JobState.WAITING and not self._start_if_room(job):
                break

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Ends jobs, within nine seconds, most of them at once; those that ended already are left alone."""
        wanted = {id(job) for job in jobs}
        for job in self._jobs:
            job.poll()
        alive = [job for job in self._jobs if id(job) in wanted and job.state in (JobState.WAITING, JobState.RUNNING)]
        for job in alive:
            job.terminate()
        for job in alive:
            job.wait_ended(_CANCEL_S)

    def take_back(self, jobs: Sequence[Job]) -> list[Job]:
        """Ends those of the jobs that have not begun, and returns them."""
        wanted = {id(job) for job in jobs}
        waiting = [job for job in self._jobs if id(job) in wanted and job.state is JobState.WAITING]
        for job in waiting:
            job.terminate()
        return list(waiting)

    def avoid(self, nodes: frozenset[str]) -> frozenset[str]:
        """Avoids none: there is only this machine."""
        return frozenset()

    def shortage(self, jobs: Sequence[Job], num_nodes: int) -> str | None:
        """Says nothing: a job waits for places here, which those that run give back."""
        return None

    def _start_if_room(self, job: LocalJob) -> bool:
        running = [other for other in self._jobs if other.state is JobState.RUNNING]
        taken = {gpu for other in running for gpu in other.gpus}
        free = [gpu for gpu in self._gpus if gpu not in taken]
        needed = _num_gpus(job.request) if self._gpus else 0  # without GPUs a "GPU" is a process
        if len(running) >= self._max_parallel_jobs or needed > len(free):
            return False
        at_once = min(self._max_parallel_jobs, len(self._jobs))
        return job.start(
            _Place(gpus=tuple(free[:needed]), num_threads=threads_per_rank(job.num_ranks, num_jobs=at_once))
        )


def _num_gpus(request: JobRequest) -> int:
    return request.num_nodes * request.gpus_per_node
