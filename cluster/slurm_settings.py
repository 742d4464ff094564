"""What the user may say to SLURM, checked against what this site's `sbatch` knows."""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from cluster.code_copy import CodeCopy
from cluster.environment import for_slurm, slurm_clusters
from cluster.job import ClusterError

_OURS = {
    "array": "it follows from the number of jobs and --max-parallel-jobs",
    "nodes": "use --nodes-per-job",
    "ntasks": "use --nodes-per-job and --gpus-per-node",
    "ntasks-per-node": "use --gpus-per-node",
    "time": "use --job-minutes",
    "job-name": "jobs are known by it in the queue",
    "output": "results and logs are read back from it",
    "error": "results and logs are read back from it",
    "open-mode": "a requeued job appends to its log",
    "signal": "it asks the job to requeue itself",
    "requeue": "every job is requeued",
    "no-requeue": "every job is requeued",
    "wrap": "the script is ours",
    "wait": "the driver polls the queue itself",
    "parsable": "the answer of sbatch is read back",
    "test-only": "use --dry-run",
    "hold": "hold jobs with `scontrol hold` after they are submitted",
    "clusters": "squeue, scancel and scontrol must ask the same cluster: set the variable SLURM_CLUSTERS, for `cancel` too",
    "cluster-constraint": "a job that moves to another cluster is not found again",
    "uid": "jobs are looked for and ended as the user who submits",
    "gid": "jobs are looked for and ended as the user who submits",
    "quiet": "the answer of sbatch is read back",
    "help": "sbatch would submit nothing",
    "usage": "sbatch would submit nothing",
    "version": "sbatch would submit nothing",
}


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmSettings:
    """How jobs are asked of SLURM.

    `max_parallel_jobs`: None for as many as SLURM gives. `mem`: per node, as sbatch takes it (`64G`). `signal_delay_s`: how
    long before its time limit a job is warned, so that it requeues itself (SLURM may warn it a minute earlier).
    `max_requeues`: how often it does. `extra`: further sbatch options by their long names; True for one without a value.
    `code`: the copy of the program that jobs run; None for the driver's own files.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    max_parallel_jobs: int | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    signal_delay_s: int = 60
    max_requeues: int = 20
    extra: Mapping[str, str | bool] = field(default_factory=dict)
    code: CodeCopy | None = None

    def __post_init__(self) -> None:
        for name in ("max_parallel_jobs", "cpus_per_task"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ClusterError(f"{name}={value}: must be at least 1")
        for name, value in {**self.named_options(), **self.extra}.items():
            if not str(value).isprintable():
                raise ClusterError(
                    f"sbatch option {name}={value!r}: line breaks and control characters are not allowed"
                )

    def named_options(self) -> dict[str, str]:
        """Returns those of sbatch's options that have a field of their own here, where set."""
        named = {"partition": self.partition, "account": self.account, "qos": self.qos, "mem": self.mem}
        return {name: value for name, value in named.items() if value is not None}


def check_extra(extra: Mapping[str, str | bool], known: Collection[str]) -> None:
    """Raises ClusterError for an option that sbatch does not know, with the nearest that it does, or that is set by us."""
    for name in extra:
        if name in _OURS:
            raise ClusterError(f"sbatch option {name!r} cannot be set by hand: {_OURS[name]}")
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see `sbatch --help` for the options of this site"
            raise ClusterError(f"sbatch has no option {name!r}; {hint}")


def slurm_is_configured() -> bool:
    """Whether this machine belongs to a SLURM cluster, even if its controller is down at the moment."""
    if shutil.which("sbatch") is None:
        return False
    # Without a configuration even this fails; it asks no controller.
    return subprocess.run(["sbatch", "--version"], check=False, capture_output=True).returncode == 0


def sbatch_options() -> set[str]:
    """Returns the long option names of this site's sbatch. Raises ClusterError if it does not answer."""
    return set(re.findall(r"--([a-z][a-z-]*[a-z])", ask_slurm("sbatch", "--help")))


def check_one_cluster() -> None:
    """Raises ClusterError if SLURM's clients are told to speak to several clusters: job ids are those of one."""
    names = slurm_clusters()
    if "," in names or names.lower() == "all":
        raise ClusterError(f"SLURM_CLUSTERS={names!r}: jobs are followed in one cluster only; name one, or unset it")


def ask_slurm(*command: str, variables: Mapping[str, str] | None = None) -> str:
    """Runs a SLURM client command and returns its stdout. `variables`: set for this command.

    Raises ClusterError with what it said on stderr, UnreachableError if the controller is away.
    """
    environment = {**for_slurm(), **(variables or {})}
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
