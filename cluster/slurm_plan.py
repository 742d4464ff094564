"""What would be submitted, and when it would start, without submitting anything."""

from __future__ import annotations

import re
import shlex
import tempfile
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from cluster.job import JobRequest
from cluster.slurm_clients import ask_slurm, asked_cluster
from cluster.slurm_record import example_record
from cluster.slurm_script import array_script, shape_of
from cluster.slurm_settings import SlurmSettings


def planned_script(
    settings: SlurmSettings, request: JobRequest, *, folder: Path, run_id: str, num_jobs: int = 1
) -> str:
    """Returns the sbatch script of an array of `num_jobs` jobs like this one. Needs no SLURM on this machine.

    `folder`: as `SlurmCluster` takes it. Only the word that names the array differs from what a submit would send. Raises
    ClusterError for what cannot stand in a script.
    """
    record = example_record(folder.absolute(), run_id)
    asked = replace(settings, cluster=asked_cluster(settings.cluster))
    return array_script(
        asked, shape_of(request), folder=record.folder, job_name=record.job_name, num_jobs=num_jobs
    )  # fmt: skip


def expected_start(settings: SlurmSettings, script: str) -> datetime | None:
    """Asks SLURM when such a job would start; None if it does not say. Raises ClusterError if it would be refused."""
    with tempfile.TemporaryDirectory(prefix="pab-pipeline-") as folder:
        path = Path(folder) / "test-only.sh"
        path.write_text(script, encoding="utf-8")
        # The answer comes on stderr, the shell brings it to stdout.
        asked = f"sbatch --test-only {shlex.quote(str(path))} 2>&1"
        answer = ask_slurm("sh", "-c", asked, cluster=asked_cluster(settings.cluster))
    found = re.search(r"to start at (\S+)", answer)
    return datetime.fromisoformat(found.group(1)).astimezone() if found else None
