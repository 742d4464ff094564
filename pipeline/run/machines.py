"""From settings to machines: the cluster that runs a run's jobs, its folder, and what is asked for each shard."""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from dataclasses import replace
from math import ceil
from pathlib import Path

from cluster.job import Cluster, JobRequest
from cluster.local import LocalCluster
from cluster.slurm import SlurmCluster
from cluster.slurm_elsewhere import jobs_elsewhere
from cluster.whole_files import read_json, write_json
from jobs.progress import ClipProgress, NoProgress
from jobs.render import RenderShard
from jobs.settings import JobSettings
from jobs.store import layout
from pipeline.exits import RefusedError, UsageError
from pipeline.run.job_code import JOBS
from pipeline.run.settings import MachineSettings, RunSettings
from pipeline.run.sites import check_launch, slurm_settings

LIMIT_SHARE, LIMIT_MIN = 1.5, 10
"""SLURM's limit above the planned minutes: planning is an estimate, and a job that is cut off starts anew."""
LOOPBACK = "127.0.0.1"
_RUN_ID = re.compile(r"[0-9a-f]{12,64}")
_OUTPUT = "output.json"
_ALIASES = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}
"""Protocols that name the same store as another one."""
DEADLINE_S = 120.0
"""A job stops taking clips so long before SLURM's limit."""


def work_folder(run_id: str) -> Path:
    """Returns where a run's submitit files, error output and scheduler file are: a folder that jobs see too.

    Raises UsageError for an id that is none: it comes from a bucket, and must not lead to any other folder.
    """
    if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id):
        raise UsageError(
            f"run_id={str(run_id)[:80]!r} in run.json, needs 12 to 64 of 0-9 and a-f; somebody has written over that file"
        )
    return JOBS.absolute() / run_id


def planned_folder(run_id: str | None) -> Path:
    """Returns what `work_folder` returns; of a run that has no id yet, with a word in its place."""
    return work_folder(run_id) if run_id else JOBS.absolute() / "NEW_RUN"


def claim_folder(folder: Path, output: str) -> None:
    """Notes in a run's folder on this machine which output it is of, unless it is known as another's. Raises OSError."""
    known = _claimed_by(folder)
    moved = known is not None and Path(place := _place(known)).is_absolute() and not Path(place).exists()
    if folder.is_dir() and (known is None or moved):
        # A link in it may lead elsewhere later.
        write_json(folder / _OUTPUT, {"output": _place(output)})


def check_claim(folder: Path, output: str) -> None:
    """Raises RefusedError if a run's folder on this machine is known as that of another output, however it is spelled."""
    known = _claimed_by(folder)
    if known is not None and _place(known) != _place(output):
        raise RefusedError(
            f"run.json in {output} names a run that this machine knows as the one in {known}, so nothing is cancelled; name "
            f"that one, or remove {folder / _OUTPUT} if the run has moved"
        )


def _place(output: str) -> str:
    """Returns one spelling for all of a place: a local path without links and dots, or a URL by its usual protocol."""
    protocol, mark, rest = output.partition("://")
    if not mark:
        return os.path.realpath(output)
    if protocol in ("file", "local"):
        return os.path.realpath(rest)
    # Dots and double slashes are parts of keys in object storage.
    return f"{_ALIASES.get(protocol, protocol)}://{rest.rstrip('/')}"


def _claimed_by(folder: Path) -> str | None:
    match read_json(folder / _OUTPUT):
        case {"output": str(output)}:
            return output
    return None


def driver_host(machines: MachineSettings) -> str:
    """Returns the address at which jobs reach Dask: `--dashboard-host`, else loopback for local jobs, else the host's own."""
    if machines.dashboard_host:
        return machines.dashboard_host
    if machines.cluster == "local":
        return LOOPBACK
    with suppress(OSError):
        found = socket.gethostbyname(socket.gethostname())
        if not found.startswith("127."):
            return found
    # Many systems name themselves by a loopback address, or by a name that nobody knows: then the address is asked for that
    # packets to elsewhere would carry.
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("10.255.255.255", 1))  # sends nothing
        return str(probe.getsockname()[0])
    return LOOPBACK


def open_cluster(settings: RunSettings, folder: Path, *, with_references: bool) -> Cluster:
    """Returns the cluster that the settings name. `with_references`: whether the manifest names any.

    Raises UsageError, ClusterError; RefusedError also if jobs of the run are in another cluster.
    """
    machines = settings.machines
    if machines.cluster == "local":
        return LocalCluster(folder, machines.max_parallel_jobs)
    asked = slurm_settings(settings, folder, with_references=with_references)
    check_launch(asked.launch, has_slurm=True)
    cluster = SlurmCluster(folder, asked, run_id=folder.name)
    # Of a driver that is gone, a job that SLURM holds after a failed launch would wait for ever: this one lets it go too.
    cluster.submitted()
    for name, ids in jobs_elsewhere(folder, folder.name, cluster.name or "").items():
        raise RefusedError(
            f"{len(ids)} jobs of this run are in SLURM cluster {name} ({', '.join(ids[:5])}), and this submit is of "
            f"{cluster.name}; submit with --slurm clusters={name}, wait for them, or `cancel` them"
        )
    return cluster


def limit_min(machines: MachineSettings, planned_s: float) -> int:
    """Returns the time limit of a job in minutes."""
    return ceil(max(machines.job_minutes, planned_s / 60) * LIMIT_SHARE) + LIMIT_MIN


def job_request(
    settings: JobSettings,
    machines: MachineSettings,
    *,
    shard: int,
    planned_s: float,
    progress: ClipProgress | None = None,
    again: bool = False,
) -> JobRequest:
    """Returns what is asked for one shard. `again`: the job also tries clips that failed before."""
    minutes = limit_min(machines, planned_s)
    if machines.cluster == "slurm":
        settings = replace(settings, deadline_s=60 * minutes - DEADLINE_S)
    return JobRequest(
        name=layout.job_name(shard),
        call=RenderShard(settings=settings, shard=shard, progress=progress or NoProgress(), again=again),
        num_nodes=machines.nodes_per_job,
        ranks_per_node=machines.gpus_per_node,
        gpus_per_node=machines.gpus_per_node if settings.render.device == "cuda" else 0,
        timeout_min=minutes,
    )
