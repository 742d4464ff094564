"""Runs jobs on SLURM: arrays through submitit, states through squeue, results through files.

SLURM's word alone is not trusted: a COMPLETED job without a result is lost, a NODE_FAIL may come back, and only the last
start of a requeued job counts.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import shlex
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from cluster.environment import outside_of_any_job
from cluster.job import ClusterError, Job, JobRequest, JobState
from cluster.job_files import private_folder
from cluster.rank import RankCall
from cluster.slurm_job import SlurmJob, Submitted
from cluster.slurm_queue import read_queue
from cluster.slurm_settings import SlurmSettings, ask_slurm, check_extra, sbatch_options

_LOG = logging.getLogger(__name__)
_RECORD = "submitted.json"
_AFTER_FIRST_EXIT_S = 300
_CANCEL_AT_ONCE = 200
_MAX_RELEASES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """What jobs of one array have in common."""

    num_nodes: int
    ranks_per_node: int
    gpus_per_node: int
    timeout_min: int
    avoid_nodes: frozenset[str]


class SlurmCluster:
    """Submits jobs to SLURM.

    `folder` must be shared with the nodes; pickles, scripts, logs and results lie there in a new private folder (0700) per
    array, because ids repeat. `queue_interval_s`: the least time between two questions to slurmctld. `result_grace_s`: how
    long after a job has left the queue its result may take to become visible.
    """

    def __init__(
        self, folder: Path, settings: SlurmSettings, *, queue_interval_s: float = 10.0, result_grace_s: float = 15.0
    ) -> None:
        check_extra(settings.extra, sbatch_options())
        self._folder = private_folder(folder)
        self._settings = settings
        self._queue_interval_s = queue_interval_s
        self._result_grace_s = result_grace_s
        self._jobs: list[SlurmJob] = []
        self._asked_at_s = float("-inf")
        self._queue_fails = False
        self._told_stuck: set[str] = set()
        self._releases: Counter[str] = Counter()

    def submit(self, requests: Sequence[JobRequest]) -> list[Job]:
        """Hands jobs over as arrays, all or none. Raises ClusterError with sbatch's words when refused.

        With a bound on parallel jobs, those beyond `MaxArraySize` form a further array, which starts when the first ends.
        """
        size = _max_array_size()
        submitted: list[SlurmJob] = []
        with contextlib.ExitStack() as undo:
            undo.callback(lambda: _scancel([job.id for job in submitted]))
            for array in _arrays(requests, size):
                after = submitted[-1].id.split("_")[0] if submitted and self._settings.max_parallel_jobs else None
                submitted += self._submit_array(array, after=after)
            undo.pop_all()
        self._jobs += submitted
        return list(submitted)

    def submitted(self) -> list[Job]:
        """Returns the jobs that earlier drivers submitted from this folder; from now on `poll` knows their states."""
        known = {job.id for job in self._jobs}
        records = sorted(self._folder.glob(f"*/{_RECORD}"), key=lambda path: path.stat().st_mtime_ns)
        entries = [{**entry, "folder": path.parent} for path in records for entry in json.loads(path.read_text())]
        found = [SlurmJob(Submitted(**entry)) for entry in entries if entry["id"] not in known]
        self._jobs += found
        return list(found)

    def poll(self) -> None:
        """Brings all states up to date with one squeue, if `queue_interval_s` has passed; an outage changes no state."""
        now_s = time.monotonic()
        open_jobs = [job for job in self._jobs if not job.is_over]
        if not open_jobs or now_s - self._asked_at_s < self._queue_interval_s:
            return
        self._asked_at_s = now_s
        try:
            rows = read_queue()
        except ClusterError as error:
            if not self._queue_fails:
                _LOG.warning("the queue cannot be read, job states stay as they are until it can: %s", error)
            self._queue_fails = True
            return
        self._queue_fails = False
        for job in open_jobs:
            row = rows.get(job.id)
            job.see(row, now_s=now_s, grace_s=self._result_grace_s)
            if row and row.is_held_by_failed_launch and self._release(job):
                continue
            if row and row.is_stuck and job.id not in self._told_stuck:
                self._told_stuck.add(job.id)
                _LOG.warning("%s (%s) will not start by itself: %s", job.name, job.id, row.reason)

    def _release(self, job: SlurmJob) -> bool:
        """Releases a job that SLURM holds because its node could not start it. That is the node's fault, not the user's."""
        if self._releases[job.id] >= _MAX_RELEASES:
            return False
        self._releases[job.id] += 1
        try:
            ask_slurm("scontrol", "release", job.id)
        except ClusterError as error:
            _LOG.warning("%s (%s) is held after a failed launch and cannot be released: %s", job.name, job.id, error)
            return False
        _LOG.warning("%s (%s): its node could not start it, so SLURM held it; released", job.name, job.id)
        return True

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Ends jobs through scancel. Their processes go on for up to SLURM's KillWait, which poll shows as running."""
        wanted = {job.id for job in jobs}
        alive = [job for job in self._jobs if job.id in wanted and job.state in (JobState.WAITING, JobState.RUNNING)]
        for job in alive:
            job.cancel_asked = True
        _scancel([job.id for job in alive])
        self._asked_at_s = float("-inf")

    def script(self, request: JobRequest, *, num_jobs: int = 1) -> str:
        """Returns the sbatch script of an array of `num_jobs` jobs like this one, without submitting anything."""
        executor = self._executor(_shape(request), folder=self._folder / "dry-run", job_name=self._job_name("dry-run"))
        if num_jobs > 1:
            executor.parameters.update(
                map_count=num_jobs, array_parallelism=self._settings.max_parallel_jobs or num_jobs
            )
        return str(executor._make_submission_file_text(executor._submitit_command_str, ""))

    def expected_start(self, request: JobRequest) -> datetime | None:
        """Asks SLURM when such a job would start; None if it does not say. Raises ClusterError if it would be refused."""
        path = self._folder / f"test-only-{uuid.uuid4().hex}.sh"
        path.write_text(self.script(request))
        try:
            # The answer comes on stderr, the shell brings it to stdout.
            answer = ask_slurm("sh", "-c", f"sbatch --test-only {shlex.quote(str(path))} 2>&1")
        finally:
            path.unlink()
        found = re.search(r"to start at (\S+)", answer)
        return datetime.fromisoformat(found.group(1)).astimezone() if found else None

    def _submit_array(self, requests: Sequence[JobRequest], *, after: str | None) -> list[SlurmJob]:
        token = uuid.uuid4().hex[:12]
        folder = private_folder(self._folder / f"slurm-{token}")
        executor = self._executor(_shape(requests[0]), folder=folder, job_name=self._job_name(token))
        executor.update_parameters(array_parallelism=self._settings.max_parallel_jobs or len(requests))
        if after:
            theirs = self._settings.extra.get("dependency")
            executor.parameters["additional_parameters"]["dependency"] = ",".join(
                [*([str(theirs)] if theirs else []), f"afterany:{after}"]
            )
        calls = [RankCall(call=request.call, max_requeues=self._settings.max_requeues) for request in requests]
        try:
            with outside_of_any_job(), contextlib.redirect_stderr(io.StringIO()):
                handles = executor.submit_array(calls)
        except (FailedJobError, FailedSubmissionError) as error:
            raise ClusterError(f"sbatch refused {requests[0].name}: {error}") from error
        jobs = [
            Submitted(
                name=request.name,
                id=handle.job_id,
                num_ranks=request.num_nodes * request.ranks_per_node,
                job_name=self._job_name(token),
                folder=folder,
            )
            for request, handle in zip(requests, handles, strict=True)
        ]
        (folder / _RECORD).write_text(json.dumps([{**asdict(job), "folder": ""} for job in jobs]))
        return [SlurmJob(job) for job in jobs]

    def _executor(self, shape: _Shape, *, folder: Path, job_name: str) -> submitit.SlurmExecutor:
        settings = self._settings
        extra = dict(settings.extra)
        srun_args = ["--kill-on-bad-exit=1", f"--wait={_AFTER_FIRST_EXIT_S}"]
        if settings.cpus_per_task:
            # Since 22.05 srun no longer takes it from sbatch.
            srun_args.append(f"--cpus-per-task={settings.cpus_per_task}")
        executor = submitit.SlurmExecutor(folder)
        executor.update_parameters(
            job_name=job_name,
            time=shape.timeout_min,
            nodes=shape.num_nodes,
            ntasks_per_node=shape.ranks_per_node,
            gpus_per_node=shape.gpus_per_node if shape.gpus_per_node and not extra.keys() & _GPU_OPTIONS else None,
            cpus_per_task=settings.cpus_per_task,
            signal_delay_s=min(settings.signal_delay_s, shape.timeout_min * 60 // 4),
            srun_args=srun_args,
            setup=_setup(settings.cpus_per_task),
            wckey=None,
            additional_parameters={"requeue": True, **settings.named_options(), **extra, **_exclude(shape, extra)},
        )
        return executor

    @staticmethod
    def _job_name(token: str) -> str:
        return f"pab-{token}"


_GPU_OPTIONS = {"gpus", "gpus-per-node", "gpus-per-task", "gres"}


def _exclude(shape: _Shape, extra: Mapping[str, str | bool]) -> dict[str, str]:
    if not shape.avoid_nodes:
        return {}
    theirs = extra.get("exclude")
    return {"exclude": ",".join([*([str(theirs)] if theirs else []), *sorted(shape.avoid_nodes)])}


def _shape(request: JobRequest) -> _Shape:
    return _Shape(
        num_nodes=request.num_nodes,
        ranks_per_node=request.ranks_per_node,
        gpus_per_node=request.gpus_per_node,
        timeout_min=request.timeout_min,
        avoid_nodes=request.avoid_nodes,
    )


def _setup(cpus_per_task: int | None) -> list[str]:
    root = shlex.quote(str(Path(__file__).parent.parent))
    lines = [f'export PYTHONPATH={root}"${{PYTHONPATH:+:$PYTHONPATH}}"']
    if cpus_per_task:
        lines.append(f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{cpus_per_task}}}"')
    return lines


def _arrays(requests: Sequence[JobRequest], size: int) -> Iterator[list[JobRequest]]:
    """Cuts the requests, in order, into runs of one shape of at most `size`."""
    array: list[JobRequest] = []
    for request in requests:
        if array and (len(array) == size or _shape(request) != _shape(array[0])):
            yield array
            array = []
        array.append(request)
    if array:
        yield array


def _max_array_size() -> int:
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask_slurm("scontrol", "show", "config"), re.MULTILINE)
    return max(1, int(found.group(1))) if found else 1000


def _scancel(ids: Sequence[str]) -> None:
    for start in range(0, len(ids), _CANCEL_AT_ONCE):
        # --quiet: jobs that ended meanwhile are no error
        ask_slurm("scancel", "--quiet", *ids[start : start + _CANCEL_AT_ONCE])
