"""The only file of this package that touches environment variables: SLURM's of a job, and those that children get."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
"""Where our packages lie: a child process that runs one of them finds it from any folder."""
_OF_A_JOB = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_")
_OF_THE_SITE = ("SLURM_CONF", "SLURM_CLUSTERS")


def variables() -> Mapping[str, str]:
    """Returns the variables of this process."""
    return os.environ


def restart_count() -> int:
    """Returns how often SLURM has started this job again; 0 outside of SLURM."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def for_child(*, defaults: Mapping[str, str] | None = None, changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the variables of a child process that runs one of our packages.

    They are this process's own, which win over `defaults`; `changes` win over both.
    """
    search_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**(defaults or {}), **os.environ, "PYTHONPATH": search_path, **(changes or {})}


@contextlib.contextmanager
def outside_of_any_job() -> Iterator[None]:
    """Hides the surrounding allocation, if the driver runs in one: its variables would pass into the new jobs."""
    hidden = {
        name: value for name, value in os.environ.items() if name.startswith(_OF_A_JOB) and name not in _OF_THE_SITE
    }
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)
