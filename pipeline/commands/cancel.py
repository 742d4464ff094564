"""`cancel`: ends the jobs of a run, those of all its submits."""

from __future__ import annotations

import argparse
import os
import signal
import socket
from pathlib import Path

from cluster.job import ClusterError, JobState
from cluster.slurm import SlurmCluster
from cluster.slurm_settings import SlurmSettings
from jobs.store.bucket import Bucket
from pipeline.exits import Exit, RefusedError
from pipeline.run.jobs_file import StartedJobs, read_submits
from pipeline.run.run import load_run, open_bucket
from pipeline.screen import Screen, counted

_OPEN = (JobState.WAITING, JobState.RUNNING)


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Carries out `cancel`. Local jobs end with their driver, which gets a signal; SLURM jobs through scancel."""
    bucket = open_bucket(arguments.output)
    load_run(bucket)
    submits = list(read_submits(bucket))
    drivers = [_stop_driver(submit, screen) for submit in submits if submit.cluster == "local" and not submit.ended]
    slurm = sorted({submit.folder for submit in submits if submit.cluster == "slurm"})
    cancelled = [name for folder in slurm for name in _cancel_slurm(Path(folder), bucket)]
    stopped = [pid for pid in drivers if pid is not None]
    screen.result(
        {"output": bucket.url, "cancelled": cancelled, "drivers_stopped": stopped},
        f"{counted(len(cancelled), 'SLURM job')} cancelled, {counted(len(stopped), 'local driver')} told to stop; what is "
        "rendered stays, submit again to go on",
    )
    return Exit.OK


def _cancel_slurm(folder: Path, bucket: Bucket) -> list[str]:
    if not folder.is_dir():
        raise RefusedError(
            f"{folder} is not here, where {bucket.url} keeps its SLURM jobs; cancel on the machine that submitted"
        )
    cluster = SlurmCluster(folder, SlurmSettings())
    jobs = cluster.submitted()
    try:
        cluster.poll()
        alive = [job for job in jobs if job.state in _OPEN]
        cluster.cancel(alive)
    except ClusterError as error:
        raise RefusedError(f"the jobs in {folder} cannot be cancelled: {error}") from error
    return [f"{job.name} ({job.id})" for job in alive]


def _stop_driver(submit: StartedJobs, screen: Screen) -> int | None:
    # A pid may belong to somebody else by now: only a process that runs this program is told to stop.
    if submit.host != socket.gethostname():
        screen.note(f"submit {submit.submit_id} drives local jobs on {submit.host}: cancel there, or Ctrl-C it")
        return None
    try:
        command = Path(f"/proc/{submit.pid}/cmdline").read_bytes().split(b"\0")
    except FileNotFoundError:
        return None
    if not {b"pipeline", b"submit"} & set(command) or b"submit" not in command:
        return None
    os.kill(submit.pid, signal.SIGTERM)
    return submit.pid
