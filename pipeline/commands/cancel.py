"""`cancel`: ends the jobs of a run, those of all its submits.

Whom it ends is decided by what this machine knows of the run: the bucket only names the run.
"""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

from cluster.job import ClusterError
from cluster.local_driver import stop_drivers
from cluster.slurm import SlurmCluster
from cluster.slurm_elsewhere import clusters_of_run
from cluster.slurm_settings import SlurmSettings
from jobs.store.bucket import Bucket
from pipeline.exits import Exit, RefusedError
from pipeline.run.jobs_file import StartedJobs, read_submits
from pipeline.run.machines import check_claim, work_folder
from pipeline.run.run import load_run, open_bucket
from pipeline.screen import Screen, counted


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Carries out `cancel`. Local jobs end with their driver, which gets a signal; SLURM jobs through scancel."""
    bucket = open_bucket(arguments.output)
    folder = work_folder(load_run(bucket).run_id)
    check_claim(folder, bucket.url)
    submits = list(read_submits(bucket))
    stopped = stop_drivers(folder) if folder.is_dir() else []
    _tell_drivers_elsewhere(folder, submits, screen)
    slurm = [submit for submit in submits if submit.cluster == "slurm"]
    cancelled = _cancel_slurm(folder, bucket, slurm, screen) if slurm or any(folder.glob("slurm-*")) else []
    screen.result(
        {"output": bucket.url, "cancelled": cancelled, "drivers_stopped": stopped},
        f"{counted(len(cancelled), 'SLURM job')} cancelled, {counted(len(stopped), 'local driver')} told to stop; what is "
        "rendered stays, submit again to go on",
    )
    return Exit.OK


def _cancel_slurm(folder: Path, bucket: Bucket, submits: list[StartedJobs], screen: Screen) -> list[str]:
    if not folder.is_dir():
        said = submits[-1].folder
        raise RefusedError(
            f"{folder} is not here, where this machine would keep the SLURM jobs of {bucket.url}; cancel on the machine and "
            f"in the folder that submitted (the bucket says: {said} on {submits[-1].host})"
        )
    try:
        clusters = [
            SlurmCluster(folder, SlurmSettings(cluster=name), run_id=folder.name)
            for name in clusters_of_run(folder, folder.name)
        ]
        jobs = [job for cluster in clusters for job in cluster.cancel_run()]
    except ClusterError as error:
        raise RefusedError(f"the jobs in {folder} cannot be cancelled: {error}") from error
    for record in (record for cluster in clusters for record in cluster.unanswered):
        screen.note(
            f"sbatch has not said yet whether it took {', '.join(record.names) or record.job_name}: a submit that is at work "
            "takes them back; if none is, cancel once more in a minute"
        )
    return [f"{job.name} ({job.id})" for job in jobs]


def _tell_drivers_elsewhere(folder: Path, submits: list[StartedJobs], screen: Screen) -> None:
    here = socket.gethostname()
    for submit in submits:
        if submit.cluster != "local" or submit.ended:
            continue
        if submit.host != here:
            screen.note(f"submit {submit.submit_id} drives local jobs on {submit.host}: cancel there, or Ctrl-C it")
        elif not folder.is_dir():
            screen.note(
                f"{folder} is not here, so the driver of submit {submit.submit_id} is not known here: cancel in the folder "
                "that submitted, or Ctrl-C it"
            )
