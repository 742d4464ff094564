"""What the user may say to SLURM, checked against what this site's `sbatch` knows."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from cluster.job import ClusterError
from cluster.slurm_launch import Launch

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
    "clusters": "all clients of SLURM must ask the same one: it is a setting of its own",
    "cluster-constraint": "a job that moves to another cluster is not found again",
    "uid": "jobs are looked for and ended as the user who submits",
    "gid": "jobs are looked for and ended as the user who submits",
    "quiet": "the answer of sbatch is read back",
    "help": "sbatch would submit nothing",
    "usage": "sbatch would submit nothing",
    "version": "sbatch would submit nothing",
}
_JOB_ID = re.compile(r"[0-9]+(_[0-9]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmSettings:
    """How jobs are asked of SLURM.

    `max_parallel_jobs`: None for as many as SLURM gives. `mem`: per node, as sbatch takes it (`64G`). `signal_delay_s`: how
    long before its time limit a job is warned, so that it requeues itself (SLURM may warn it a minute earlier).
    `max_requeues`: how often it does. `cluster`: whose clients are asked, for sites with several; empty for this machine's
    own, None for what SLURM_CLUSTERS says. `comment`: shown by squeue and sacct. `after`: ids of jobs that must have ended
    well before any of these starts. `launch`: how python begins. `extra`: further sbatch options by their long names; True
    for one without a value.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    max_parallel_jobs: int | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    signal_delay_s: int = 60
    max_requeues: int = 20
    cluster: str | None = None
    comment: str | None = None
    after: tuple[str, ...] = ()
    launch: Launch = field(default_factory=Launch)
    extra: Mapping[str, str | bool] = field(default_factory=dict)

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
        for job_id in self.after:
            if not _JOB_ID.fullmatch(job_id):
                raise ClusterError(f"after={job_id!r}: needs the id of a job, such as 1234 or 1234_5")

    def named_options(self) -> dict[str, str]:
        """Returns those of sbatch's options that have a field of their own here, where set."""
        named = {
            "partition": self.partition, "account": self.account, "qos": self.qos, "mem": self.mem, "comment": self.comment,
        }  # fmt: skip
        return {name: value for name, value in named.items() if value is not None}

    def dependency(self, *, is_restart: bool, after_array: str | None) -> str | None:
        """Returns what jobs wait for; None for nothing. `after_array`: the array before them. Raises ClusterError.

        A job that starts again has had what the user made it wait for; SLURM forgets such jobs, and then refuses their ids.
        """
        theirs = self.extra.get("dependency")
        asked = [] if is_restart or not theirs else [str(theirs)]
        asked += [":".join(["afterok", *self.after])] if self.after and not is_restart else []
        asked += [f"afterany:{after_array}"] if after_array else []
        if len(asked) > 1 and "?" in str(theirs):
            raise ClusterError(
                f"--slurm dependency={theirs}: with '?' it cannot be joined with --after, or with the order of arrays that "
                "--max-parallel-jobs asks for; join its parts with ','"
            )
        return ",".join(asked) or None


def check_extra(extra: Mapping[str, str | bool], known: Collection[str]) -> None:
    """Raises ClusterError for an option that sbatch does not know, with the nearest that it does, or that is set by us."""
    for name in extra:
        if name in _OURS:
            raise ClusterError(f"sbatch option {name!r} cannot be set by hand: {_OURS[name]}")
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see `sbatch --help` for the options of this site"
            raise ClusterError(f"sbatch has no option {name!r}; {hint}")
