"""The sbatch scripts of a submit that is not made; on a machine with SLURM, also what sbatch says of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cluster.slurm_clients import UnreachableError, sbatch_options, slurm_is_configured
from cluster.slurm_plan import expected_start, planned_script
from cluster.slurm_settings import check_extra
from pipeline.planning.sharding import PlannedWork
from pipeline.run.machines import job_request, limit_min
from pipeline.run.settings import RunSettings
from pipeline.run.sites import check_launch, slurm_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmAnswers:
    """The scripts that sbatch would get, when the first job would start, and what could not be asked.

    `cluster`: the name of the SLURM cluster that would get them, if the user names one.
    """

    scripts: tuple[str, ...] = ()
    start: datetime | None = None
    note: str | None = None
    cluster: str | None = None


def slurm_answers(settings: RunSettings, work: PlannedWork, folder: Path, *, with_references: bool) -> SlurmAnswers:
    """Returns the sbatch scripts of the jobs, one for each time limit, and when SLURM would start the first of them.

    Nothing for jobs on this machine; no time where SLURM says none, is away, or is not on this machine. `folder`: of the
    run's jobs. Raises UsageError, RefusedError; ClusterError for what sbatch refuses.
    """
    machines, shards = settings.machines, work.shards.shards
    if machines.cluster == "local" or not shards:
        return SlurmAnswers()
    asked = slurm_settings(settings, folder, with_references=with_references)
    has_slurm = slurm_is_configured()
    check_launch(asked.launch, has_slurm=has_slurm)
    job_settings = settings.job_settings(run_id="dry-run", mesh=work.mesh, broadcast_rules=None, pinned_weights={})
    by_limit: dict[int, list[float]] = {}
    for shard in shards:
        by_limit.setdefault(limit_min(machines, shard.seconds), []).append(shard.seconds)
    scripts = tuple(
        planned_script(
            asked,
            job_request(job_settings, machines, shard=0, planned_s=seconds[0]),
            folder=folder,
            run_id=folder.name,
            num_jobs=len(seconds),
        )
        for _, seconds in sorted(by_limit.items())
    )
    if not has_slurm:
        note = (
            "SLURM is not on this machine: options of sbatch were not checked, and when jobs would start is not known"
        )
        return SlurmAnswers(scripts=scripts, note=note, cluster=asked.cluster)
    check_extra(asked.extra, sbatch_options())
    try:
        return SlurmAnswers(scripts=scripts, start=expected_start(asked, scripts[0]), cluster=asked.cluster)
    except UnreachableError:
        return SlurmAnswers(scripts=scripts, cluster=asked.cluster)
