"""Hands one array to sbatch, and finds out by the jobs' name whether SLURM took it when sbatch did not say so.

A controller that is frozen or busy takes the request, and acts on it later, although sbatch has given up meanwhile.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.job import ClusterError, JobRequest, UnansweredError
from cluster.job_files import private_folder
from cluster.slurm_clients import UnreachableError, ask_slurm
from cluster.slurm_queue import read_queue
from cluster.slurm_record import ArrayRecord, new_record
from cluster.slurm_script import array_script, shape_of, write_array
from cluster.slurm_settings import SlurmSettings

_LOG = logging.getLogger(__name__)
_ASK_AGAIN_S = 2.0
_ABSENT_ANSWERS = 2
"""A controller that comes back acts on what it was sent before, but may answer a question first."""


def prepare(
    settings: SlurmSettings,
    requests: Sequence[JobRequest],
    *,
    folder: Path,
    run_id: str,
    cluster: str,
    after: str | None,
) -> tuple[ArrayRecord, Path]:
    """Writes all that an array needs, in a new folder of `folder`, and its record; returns the record and the script's path.

    `cluster`: the name of the cluster that will be asked. Raises ClusterError if the disk does not take it.
    """
    first, names = requests[0], [each.name for each in requests]
    num_ranks = first.num_nodes * first.ranks_per_node
    record = new_record(private_folder(folder), run_id, names, num_ranks, cluster=cluster)
    private_folder(record.folder)
    script = array_script(
        settings,
        shape_of(first),
        folder=record.folder,
        job_name=record.job_name,
        num_jobs=len(requests),
        after=after,
    )
    path = write_array(settings, requests, folder=record.folder, script=script)
    record.write()
    return record, path


def hand_over(record: ArrayRecord, script: Path, *, cluster: str | None, settle_s: float) -> ArrayRecord:
    """Asks sbatch once and returns the record with the ids. `cluster`: as `ask_slurm` takes it.

    Raises ClusterError if refused, UnansweredError if that is unknown.
    """
    try:
        answer = ask_slurm("sbatch", "--parsable", str(script), cluster=cluster)
        found = re.search(r"^(\d+)(?:;.*)?$", answer, re.MULTILINE)
        if not found:
            raise UnreachableError(f"sbatch answered {answer!r}, which names no job")
    except ClusterError as error:
        settled = settle(record, error, cluster=cluster, settle_s=settle_s)
        if settled is None:
            keep(record.refuse())
            raise ClusterError(f"sbatch refused {record.names[0]}: {error}{_hint(error)}") from error
        return settled
    answered = record.answered(found.group(1))
    try:
        answered = answered.found(read_queue(record.job_name, cluster=cluster)) or answered
    except ClusterError as error:
        _LOG.warning("when %s was submitted is not known: %s", record.names[0], error)
    keep(answered)
    return answered


def settle(record: ArrayRecord, error: ClusterError, *, cluster: str | None, settle_s: float) -> ArrayRecord | None:
    """Looks for the jobs of an array for which sbatch ended with `error`; returns it with their ids, or None if not taken.

    Waits `settle_s` for a controller that is away. Raises UnansweredError if it stays away.
    """
    unknown = isinstance(error, UnreachableError | UnansweredError)
    deadline = time.monotonic() + settle_s
    absent = 0
    while True:
        try:
            found = record.found(read_queue(record.job_name, cluster=cluster))
        except ClusterError as away:
            if not unknown:
                return None
            if time.monotonic() > deadline:
                raise UnansweredError(
                    f"sbatch did not say whether it took {record.names[0]} ({error}), and the queue cannot be read ({away}); "
                    f"its jobs, if any, are named {record.job_name}: `cancel` and later submits of the run find them"
                ) from error
        else:
            if found:
                _LOG.warning("sbatch ended with an error, but SLURM took %s: %s", record.names[0], error)
                keep(found)
                return found
            absent += 1
            if absent >= (_ABSENT_ANSWERS if unknown else 1):
                return None
        time.sleep(_ASK_AGAIN_S)


def _hint(error: ClusterError) -> str:
    # sbatch says no more than "Job dependency problem".
    if "dependency" not in str(error).lower():
        return ""
    return "; SLURM forgets jobs some minutes after their end: leave out --after (or --slurm dependency) for them"


def keep(record: ArrayRecord) -> None:
    """Writes a record again, if the disk takes it: the jobs are found by their name without it too."""
    try:
        record.write()
    except ClusterError as error:
        _LOG.warning("%s; the jobs are found by their name, %s", error, record.job_name)
