"""Which cluster `--cluster auto|local|slurm` means."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from cluster.job import Cluster, ClusterError
from cluster.local import LocalCluster
from cluster.slurm import SlurmCluster
from cluster.slurm_settings import SlurmSettings

KINDS = ("auto", "local", "slurm")


def choose_cluster(kind: str, folder: Path, settings: SlurmSettings) -> Cluster:
    """Returns the cluster of this kind; "auto" is SLURM where `sbatch` is installed and configured, else this machine.

    This machine runs `settings.max_parallel_jobs` jobs at once, one if that is None. Raises ClusterError for an unknown kind.
    """
    if kind not in KINDS:
        raise ClusterError(f"--cluster {kind}: must be one of {', '.join(KINDS)}")
    if kind == "slurm" or (kind == "auto" and slurm_is_configured()):
        return SlurmCluster(folder, settings)
    return LocalCluster(folder, settings.max_parallel_jobs or 1)


def slurm_is_configured() -> bool:
    """Tells whether this machine belongs to a SLURM cluster; a controller that is down does not make it answer no."""
    if shutil.which("sbatch") is None:
        return False
    # Without a configuration even this fails; it asks no controller.
    return subprocess.run(["sbatch", "--version"], check=False, capture_output=True).returncode == 0
