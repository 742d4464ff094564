"""The only file of this package that touches environment variables: SLURM's of a job, and those that children get."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
"""Where our packages lie: a child process that runs one of them finds it from any folder."""
SAFE_PATH = "PYTHONSAFEPATH"
"""Else `python -m` looks in the current folder first, which may hold another version of the program."""
_OF_CLIENTS = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SQUEUE_", "SCANCEL_", "SCONTROL_", "SINFO_")
_CLUSTERS = "SLURM_CLUSTERS"
_OF_THE_SITE = ("SLURM_CONF", "SLURM_CONF_SERVER", _CLUSTERS, "SLURM_JWT")
_OF_THE_DRIVER = ("PAB_PIPELINE_NOTIFY", "PAB_PIPELINE_OTLP", "OTEL_EXPORTER_OTLP_")
"""Where a driver sends signals: often secrets, which no job needs, and which some sites' SLURM keeps with each job."""


def is_installed() -> bool:
    """Whether our packages lie among those of an environment: its folder would bring another interpreter all of them."""
    return ROOT.name in ("site-packages", "dist-packages")


def variables() -> Mapping[str, str]:
    """Returns the variables of this process."""
    return os.environ


def restart_count() -> int:
    """Returns how often SLURM has started this job again; 0 outside of SLURM."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def for_child(*, defaults: Mapping[str, str] | None = None, changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the variables of a child process that runs one of our packages.

    They are this process's own, without those of the driver alone, which win over `defaults`; `changes` win over both.
    """
    search_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    own = {name: value for name, value in os.environ.items() if not name.startswith(_OF_THE_DRIVER)}
    return {**(defaults or {}), **own, "PYTHONPATH": search_path, SAFE_PATH: "1", **(changes or {})}


def for_slurm(cluster: str | None = None) -> dict[str, str]:
    """Returns the variables of a SLURM client command, whose answer is read by this program.

    `cluster`: the name of the one that is asked; empty for this machine's own, None for what SLURM_CLUSTERS says.

    Left out are those of the job around the driver, which would pass into new jobs, and the user's habits: a filter in
    SQUEUE_PARTITION would hide jobs, SCANCEL_INTERACTIVE would wait for a key. The clusters in SLURM_CLUSTERS hold for all
    clients alike, unless it is empty, which they would take for a name.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if (name in _OF_THE_SITE and value) or not name.startswith((*_OF_CLIENTS, *_OF_THE_DRIVER))
    }
    if cluster is not None:
        kept.pop(_CLUSTERS, None)
    return kept | ({_CLUSTERS: cluster} if cluster else {})


def slurm_clusters() -> str:
    """Returns the clusters that SLURM's clients are told to speak to; empty for the one of this machine."""
    return os.environ.get(_CLUSTERS, "").strip()
