"""SLURM's client commands: how they are asked, of which cluster, and what their failures mean."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.environment import for_slurm, slurm_clusters
from cluster.job import ClusterError

_ANSWER_TIMEOUT_S = 60
_AWAY = (
    "Unable to contact slurm controller",
    "timed out",
    "Connection refused",
    "Connection reset",
    "Connection timed out",
    "communication connection failure",
    "endpoint is not connected",
    "Zero Bytes were transmitted",
    "Broken pipe",
    "No route to host",
    "Unexpected message received",
)


class UnreachableError(ClusterError):
    """SLURM's controller does not answer, so it is unknown what it has done."""


def slurm_is_configured() -> bool:
    """Whether this machine belongs to a SLURM cluster, even if its controller is down at the moment."""
    if shutil.which("sbatch") is None:
        return False
    # Without a configuration even this fails; it asks no controller.
    return subprocess.run(["sbatch", "--version"], check=False, capture_output=True).returncode == 0


def sbatch_options() -> set[str]:
    """Returns the long option names of this site's sbatch. Raises ClusterError if it does not answer."""
    return set(re.findall(r"--([a-z][a-z-]*[a-z])", ask_slurm("sbatch", "--help")))


def asked_cluster(name: str | None = None) -> str:
    """Returns the cluster whose clients are asked: `name`, else the one in SLURM_CLUSTERS; empty for this machine's own.

    Raises ClusterError if several are named: job ids are those of one.
    """
    where = "--slurm clusters" if name else "SLURM_CLUSTERS"
    name = (name or slurm_clusters()).strip()
    if "," in name or name.lower() == "all" or not name.isprintable():
        raise ClusterError(f"{where}={name!r}: jobs are followed in one cluster only; name one, or leave it out")
    if not name:
        return ""
    try:
        own = read_site(cluster="").cluster
    except ClusterError:
        return name
    # This machine's own cluster is asked without its name, which only a site with accounting can look up.
    return "" if name == own else name


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What a cluster says of itself. `max_array_size`: how many jobs an array may have."""

    cluster: str
    max_array_size: int


def read_site(*, cluster: str) -> Site:
    """Asks a cluster, by its name, or this machine's own, which it is. Raises ClusterError."""
    said = ask_slurm("scontrol", "show", "config", cluster=cluster)
    name = re.search(r"^ClusterName\s*=\s*(\S+)", said, re.MULTILINE)
    size = re.search(r"^MaxArraySize\s*=\s*(\d+)", said, re.MULTILINE)
    return Site(cluster=name.group(1) if name else cluster, max_array_size=max(1, int(size.group(1))) if size else 1000)


def ask_slurm(*command: str, cluster: str | None = None, variables: Mapping[str, str] | None = None) -> str:
    """Runs a SLURM client command and returns its stdout. `variables`: set for this command.

    `cluster`: which one is asked; empty for this machine's own, None for what SLURM_CLUSTERS says.

    Raises ClusterError with what it said on stderr, UnreachableError if the controller is away.
    """
    environment = {**for_slurm(cluster), **(variables or {})}
    try:
        # Names of jobs are any bytes.
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_ANSWER_TIMEOUT_S,
            env=environment,
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{command[0]} is not installed here; use --cluster local, or go to a login node") from error
    except subprocess.TimeoutExpired as error:
        raise UnreachableError(
            f"`{' '.join(command)}` gave no answer in {_ANSWER_TIMEOUT_S} s; is slurmctld up?"
        ) from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        away = done.returncode < 0 or any(words.lower() in said.lower() for words in _AWAY)
        kind = UnreachableError if away else ClusterError
        raise kind(f"`{' '.join(command)}` failed: {said}")
    return done.stdout
