"""Runs jobs on SLURM: arrays through sbatch, states through squeue, results through files.

SLURM's word alone is not trusted: a COMPLETED job without a result is lost, a NODE_FAIL may come back, only the last start
of a requeued job counts, an id may name another job by now, and a refusal of sbatch may be none.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cluster.job import CancelledError, ClusterError, Job, JobRequest, JobState, UnansweredError
from cluster.slurm_clients import Site, ask_slurm, asked_cluster, read_site, sbatch_options
from cluster.slurm_job import SlurmJob
from cluster.slurm_nodes import keep_off, may_avoid, relax, shortage
from cluster.slurm_queue import QueueRow, read_queue
from cluster.slurm_record import ArrayRecord, cancel_mark, leave_cancel_mark, name_prefix, read_records
from cluster.slurm_sbatch import hand_over, keep, prepare, settle
from cluster.slurm_script import arrays, names_of
from cluster.slurm_settings import SlurmSettings, check_extra

_LOG = logging.getLogger(__name__)
_CANCEL_AT_ONCE = 200
_MAX_RELEASES = 10
_FIRST_INTERVAL_S = 2.0
_NODES_INTERVAL_S = 60.0
"""The least time between two questions to slurmctld about nodes."""
_LIVE = (JobState.WAITING, JobState.RUNNING)
_UNANSWERED_S = 86400.0
"""A record without an answer that is older than this is of a submit that was killed before sbatch."""


class SlurmCluster:
    """Submits the jobs of one run to SLURM, and follows and ends those and no others.

    `folder` must be shared with the nodes; pickles, scripts, logs and results lie there in a new private folder (0700) per
    array, because ids repeat. `run_id` is in the name of every job. `queue_interval_s`: the least time between two questions
    about jobs to slurmctld; in its first minutes it asks more often, since short runs end in them. `result_grace_s`: how long
    after a job has left the queue its result may take to become visible. `settle_s`: how long a controller that is away is
    waited for when nobody knows whether it took jobs.
    """

    def __init__(
        self,
        folder: Path,
        settings: SlurmSettings,
        *,
        run_id: str,
        queue_interval_s: float = 10.0,
        result_grace_s: float = 15.0,
        settle_s: float = 60.0,
    ) -> None:
        check_extra(settings.extra, sbatch_options())
        self._folder = folder.expanduser().absolute()
        self._settings = replace(settings, cluster=asked_cluster(settings.cluster))
        self._site: Site | None = None
        self._run_id = run_id
        self._queue_interval_s = queue_interval_s
        self._result_grace_s = result_grace_s
        self._settle_s = settle_s
        self._mark = cancel_mark(self._folder)
        self._jobs: list[SlurmJob] = []
        self._names: set[str] = set()
        self._open: dict[str, ArrayRecord] = {}
        self._asked: dict[tuple[str, ...], ArrayRecord | list[SlurmJob]] = {}
        self._replaced: set[str] = set()
        self._avoided: frozenset[str] = frozenset()
        self._widest = 1
        self._made_at_s = time.monotonic()
        self._asked_at_s = float("-inf")
        self._nodes_asked_at_s = float("-inf")
        self._shortage: str | None = None
        self._queue_fails = False
        self._told: set[str] = set()
        self._noted: Mapping[str, str] = {}
        self._releases: Counter[str] = Counter()

    @property
    def name(self) -> str | None:
        """The name of the SLURM cluster that is asked; None as long as it does not answer."""
        if self._site is None:
            with contextlib.suppress(ClusterError):
                self._site = read_site(cluster=self._settings.cluster or "")
        return self._site.cluster if self._site else None

    @property
    def unanswered(self) -> list[ArrayRecord]:
        """The arrays of which nobody knows whether SLURM took them; their submit may be at work on that."""
        return [record for record in self._open.values() if time.time() - record.asked_at < _UNANSWERED_S]

    def submit(self, requests: Sequence[JobRequest]) -> list[Job]:
        """Hands jobs over as arrays, all or none. Raises ClusterError with sbatch's words when refused.

        With a bound on parallel jobs, those beyond `MaxArraySize` form a further array, which starts when the first ends.
        Raises UnansweredError if nobody knows whether they were taken: then the same jobs are asked for again, and those
        that were taken are found. Raises CancelledError if the run was cancelled since this object was made.
        """
        self.refuse_if_cancelled()
        self._site = read_site(cluster=self._settings.cluster or "")
        size = self._site.max_array_size
        submitted: list[SlurmJob] = []
        with contextlib.ExitStack() as undo:
            undo.callback(self._undo, submitted)
            try:
                for array in arrays(requests, size):
                    after = submitted[-1].id.split("_")[0] if submitted and self._settings.max_parallel_jobs else None
                    submitted += self._submit_array(array, after=after)
            except UnansweredError:
                undo.pop_all()
                self._know(submitted)
                raise
            self.refuse_if_cancelled()
            undo.pop_all()
        for array in arrays(requests, size):
            self._asked.pop(names_of(array), None)
        self._know(submitted)
        return list(submitted)

    def refuse_if_cancelled(self) -> None:
        """Raises CancelledError if the run was cancelled since this object was made."""
        if cancel_mark(self._folder) != self._mark:
            raise CancelledError("the run was cancelled meanwhile, so no jobs are handed over; submit again to go on")

    def submitted(self) -> list[Job]:
        """Returns the jobs that earlier drivers submitted from this folder; from now on `poll` knows their states."""
        found: list[SlurmJob] = []
        for record in read_records(self._folder, self._run_id):
            if record.job_name in self._names or record.refused or self._is_elsewhere(record):
                continue
            if record.is_open:
                self._open[record.job_name] = record
            else:
                found += self._know(SlurmJob(job) for job in record.jobs())
        return list(found)

    def alive(self, noted: Mapping[str, str] | None = None) -> list[Job]:
        """Returns the jobs of the run that wait or run, also those that were submitted from another machine or folder.

        The queue knows them by the run's id in their name. `noted`: by their ids, what they are called.
        """
        self.submitted()
        self._noted = noted or {}
        try:
            rows = self._read_queue()
        except ClusterError as error:
            _LOG.warning("jobs of earlier submits are not looked for: %s", error)
            return []
        self._adopt(rows)
        for job in self._jobs:
            job.see(rows.get(job.id), now_s=time.monotonic(), grace_s=self._result_grace_s)
        return [
            job for job in self._jobs
            if (row := rows.get(job.id)) is not None and row.live_state is not None and job.submitted.is_same(row)
        ]  # fmt: skip

    def poll(self) -> None:
        """Brings all states up to date with one squeue, if `queue_interval_s` has passed; an outage changes no state."""
        now_s = time.monotonic()
        if all(job.is_over for job in self._jobs) and not self._open:
            return
        age_s = now_s - self._made_at_s
        if now_s - self._asked_at_s < min(self._queue_interval_s, max(_FIRST_INTERVAL_S, age_s / 10)):
            return
        self._asked_at_s = now_s
        try:
            rows = self._read_queue()
        except ClusterError as error:
            if not self._queue_fails:
                _LOG.warning("the queue cannot be read, job states stay as they are until it can: %s", error)
            self._queue_fails = True
            return
        self._queue_fails = False
        self._adopt(rows)
        for job in self._jobs:
            if not job.is_over:
                self._see(job, rows.get(job.id), now_s=now_s)

    def _see(self, job: SlurmJob, row: QueueRow | None, *, now_s: float) -> None:
        job.see(row, now_s=now_s, grace_s=self._result_grace_s)
        if row is None or not job.submitted.is_same(row):
            return
        if row.is_held_by_failed_launch and self._release(job):
            return
        if row.is_stuck and job.id not in self._told:
            self._told.add(job.id)
            _LOG.warning("%s (%s) will not start by itself: %s", job.name, job.id, row.reason)

    def _release(self, job: SlurmJob) -> bool:
        """Releases a job that SLURM holds because its node could not start it. That is the node's fault, not the user's."""
        if self._releases[job.id] >= _MAX_RELEASES:
            return False
        self._releases[job.id] += 1
        try:
            ask_slurm("scontrol", "release", job.id, cluster=self._settings.cluster)
        except ClusterError as error:
            _LOG.warning("%s (%s) is held after a failed launch and cannot be released: %s", job.name, job.id, error)
            return False
        _LOG.warning("%s (%s): its node could not start it, so SLURM held it; released", job.name, job.id)
        return True

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Ends jobs through scancel. Their processes go on for up to SLURM's KillWait, which poll shows as running."""
        wanted = {job.id for job in jobs}
        alive = [job for job in self._jobs if job.id in wanted and job.state in _LIVE]
        if alive:
            self._end(alive, self._read_queue())
        self._asked_at_s = float("-inf")

    def take_back(self, jobs: Sequence[Job]) -> list[Job]:
        """Ends those of the jobs that have not begun, and returns them. Raises ClusterError."""
        rows = self._read_queue()
        wanted = {job.id for job in jobs}
        waiting = [
            job
            for job in self._jobs
            if job.id in wanted and (row := rows.get(job.id)) and row.live_state is JobState.WAITING
        ]
        self._asked_at_s = float("-inf")
        return list(self._end(waiting, rows))

    def cancel_run(self) -> list[Job]:
        """Ends all jobs of the run, whoever submitted them, and returns those that were alive. Raises ClusterError.

        A submit that is just handing over jobs is told so, and takes them back.
        """
        leave_cancel_mark(self._folder)
        self.submitted()
        rows = self._read_queue()
        self._adopt(rows)
        return list(self._end(self._jobs, rows))

    def avoid(self, nodes: frozenset[str]) -> frozenset[str]:
        """Keeps jobs that start from now on off these nodes, as far as enough others are left; returns those it keeps off."""
        try:
            avoided = may_avoid(self._settings, self._avoided, nodes, needed=self._widest)
            if avoided != self._avoided:
                self._avoided = avoided
                rows = self._read_queue()
                waiting = [job for job in self._jobs if (row := rows.get(job.id)) and job.submitted.is_same(row)]
                keep_off(
                    self._settings, avoided, [job for job in waiting if rows[job.id].live_state is JobState.WAITING]
                )
        except ClusterError as error:
            _LOG.warning("jobs that wait are not kept off %s: %s", ", ".join(sorted(nodes)), error)
        return self._avoided

    def shortage(self, jobs: Sequence[Job], num_nodes: int) -> str | None:
        """Says which of the jobs finds fewer usable nodes than it needs, and why; None if all find enough."""
        wanted, now_s = {job.id for job in jobs}, time.monotonic()
        waiting = [job for job in self._jobs if job.id in wanted and job.state is JobState.WAITING]
        if not waiting:
            self._shortage = None
        elif now_s - self._nodes_asked_at_s >= _NODES_INTERVAL_S:
            self._nodes_asked_at_s = now_s
            # Of an outage the queue tells already.
            with contextlib.suppress(ClusterError):
                self._shortage = shortage(self._settings, self._avoided, waiting, needed=num_nodes)
                if self._shortage and self._relax(waiting, num_nodes):
                    self._shortage = shortage(self._settings, self._avoided, waiting, needed=num_nodes)
        return self._shortage

    def _relax(self, waiting: Sequence[SlurmJob], num_nodes: int) -> bool:
        given = relax(self._settings, self._avoided, waiting, needed=num_nodes)
        for job, nodes in given.items():
            _LOG.warning(
                "%s (%s): too few other nodes are left, so it may start again where its clips failed: %s",
                job.name, job.id, ", ".join(sorted(nodes)),
            )  # fmt: skip
        return bool(given)

    def _submit_array(self, requests: Sequence[JobRequest], *, after: str | None) -> list[SlurmJob]:
        names = names_of(requests)
        asked = self._asked.get(names)
        if isinstance(asked, list):
            return asked
        record = (
            settle(asked, UnansweredError("it gave no answer"), cluster=self._settings.cluster, settle_s=self._settle_s)
            if asked
            else None
        )
        if asked and record is None:
            keep(asked.refuse())
            self._replaced.add(asked.job_name)
        if record is None:
            new, script = prepare(
                self._settings,
                requests,
                folder=self._folder,
                run_id=self._run_id,
                cluster=self.name or "",
                after=after,
            )
            self._asked[names] = new
            try:
                record = hand_over(new, script, cluster=self._settings.cluster, settle_s=self._settle_s)
            except UnansweredError:
                raise
            except ClusterError:
                del self._asked[names]
                raise
        jobs = [SlurmJob(job, avoid_nodes=requests[0].avoid_nodes) for job in record.jobs()]
        self._widest = max(self._widest, *(request.num_nodes for request in requests))
        self._asked[names] = jobs
        return jobs

    def _is_elsewhere(self, record: ArrayRecord) -> bool:
        return bool(record.cluster) and self.name not in (None, record.cluster)

    def _read_queue(self) -> dict[str, QueueRow]:
        return read_queue(cluster=self._settings.cluster)

    def _know(self, jobs: Iterable[SlurmJob]) -> list[SlurmJob]:
        known = {(job.id, job.submitted.job_name) for job in self._jobs}
        new = [job for job in jobs if (job.id, job.submitted.job_name) not in known]
        self._jobs += new
        self._names.update(job.submitted.job_name for job in new)
        for job in new:
            self._open.pop(job.submitted.job_name, None)
        return new

    def _adopt(self, rows: Mapping[str, QueueRow]) -> None:
        """Takes in jobs of the run that are in the queue, but in no record that was answered; ends those asked for twice."""
        asked = {record.job_name for record in self._asked.values() if isinstance(record, ArrayRecord)}
        names = {row.job_name for row in rows.values() if row.job_name.startswith(name_prefix(self._run_id))}
        names |= {row.job_name for row in rows.values()} & self._open.keys()
        unknown = names - self._names - asked
        if unknown - self._open.keys():
            self.submitted()  # of another driver, which has handed them over meanwhile
            unknown -= self._names
        for name in sorted(unknown):
            record = self._open.get(name) or ArrayRecord.lost(self._folder, name)
            if record and (found := record.found(rows, self._noted)):
                adopted = self._know(SlurmJob(job) for job in found.jobs())
                if name in self._replaced:
                    _LOG.warning("SLURM took %s twice: those of the request without an answer are ended", name)
                    self._end_late(adopted, rows)
                elif found.folder.is_dir() and any(rows[job.id].live_state for job in adopted):
                    _LOG.warning("SLURM took %s (%s) although sbatch did not say so", adopted[0].name, adopted[0].id)

    def _end_late(self, jobs: list[SlurmJob], rows: Mapping[str, QueueRow]) -> None:
        try:
            self._end(jobs, rows)
        except ClusterError as error:
            _LOG.warning("%s, which is not needed, cannot be ended: %s", jobs[0].id, error)

    def _undo(self, jobs: list[SlurmJob]) -> None:
        """Ends what a submit that fails or is interrupted has handed over, as far as it can."""
        unanswered = [record for record in self._asked.values() if isinstance(record, ArrayRecord)]
        self._asked.clear()
        try:
            rows = self._read_queue()
            found = [record for each in unanswered if (record := each.found(rows))]
            self._end([*jobs, *(SlurmJob(job) for record in found for job in record.jobs())], rows)
        except ClusterError as error:
            _LOG.warning("jobs that were handed over cannot be taken back, `cancel` the run to end them: %s", error)

    def _end(self, jobs: Iterable[SlurmJob], rows: Mapping[str, QueueRow]) -> list[SlurmJob]:
        """Ends those of the jobs that are alive and still the ones that their ids name; returns them."""
        alive = []
        for job in jobs:
            row = rows.get(job.id)
            if row is not None and not job.submitted.is_same(row):
                if row.live_state is not None:
                    _LOG.warning(
                        "%s: SLURM's id %s names another job by now (%r), which is left alone",
                        job.name,
                        job.id,
                        row.job_name,
                    )
                continue
            job.cancel_asked = True
            if row is not None and row.live_state is not None:
                alive.append(job)
        for start in range(0, len(alive), _CANCEL_AT_ONCE):
            # --quiet: jobs that ended meanwhile are no error. No filter such as --state: with one, scancel ends other jobs of
            # the array too.
            ids = [job.id for job in alive[start : start + _CANCEL_AT_ONCE]]
            ask_slurm("scancel", "--quiet", *ids, cluster=self._settings.cluster)
        return alive
