"""Reads SLURM's queue: one squeue for all jobs, which needs no accounting and never shows a requeued job as ended."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from cluster.job import ClusterError, JobState
from cluster.slurm_clients import ask_slurm

# The name is last, and any text may stand in it: also a line break, or what looks like the row of another job.
_FIELDS = ("JobArrayID", "State", "RestartCnt", "Reason", "SubmitTime", "NodeList", "Name")

_WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_LEFT = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE", "REVOKED"}
# SLURM shows these for a while for a job that it then starts again.
_MAYBE_LEFT = {"NODE_FAIL", "BOOT_FAIL", "PREEMPTED"}

_LAUNCH_FAILED = "launch failed requeued held"
_STUCK = (
    "held",
    "JobHeld",
    "DependencyNeverSatisfied",
    "BadConstraints",
    "PartitionConfig",
    "PartitionNodeLimit",
    "PartitionTimeLimit",
    "PartitionDown",
    "PartitionInactive",
    "AccountNotAllowed",
    "QOSNotAllowed",
    "InvalidAccount",
    "InvalidQOS",
    "MaxCpuPerAccount",
)


_NODE_FIELDS = ("NodeList", "Partition", "StateLong", "Reason")
_UNUSABLE = ("down", "drain", "fail", "unknown", "maint", "powered_down", "inval")


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueRow:
    """One job as the queue shows it. `restarts`: how often SLURM has started it anew.

    `submitted_at`: when the controller took it, or requeued it last, in seconds since 1970. `nodes`: where it runs or ran
    last, in SLURM's short form.
    """

    state: str
    restarts: int
    reason: str
    job_name: str
    submitted_at: int | None = None
    nodes: str = ""

    @property
    def live_state(self) -> JobState | None:
        """WAITING or RUNNING; None when the job has left. COMPLETING is running: its processes still write."""
        if self.state in _LEFT | _MAYBE_LEFT:
            return None
        return JobState.WAITING if self.state in _WAITING else JobState.RUNNING

    @property
    def may_come_back(self) -> bool:
        """Whether SLURM may be about to start it again."""
        return self.state in _MAYBE_LEFT

    @property
    def is_held_by_failed_launch(self) -> bool:
        """Whether SLURM holds it only because a node could not start it."""
        return self.live_state is JobState.WAITING and _LAUNCH_FAILED in self.reason

    @property
    def is_stuck(self) -> bool:
        """Whether it waits for a person rather than for a place."""
        return self.live_state is JobState.WAITING and any(word in self.reason for word in _STUCK)


def read_queue(job_name: str | None = None, *, cluster: str | None = None) -> dict[str, QueueRow]:
    """Returns this user's jobs by id (`12_3` in an array), those that ended in the last minutes too.

    `job_name`: only the jobs of this name. `cluster`: as `ask_slurm` takes it. Raises ClusterError.
    """
    # Nobody can know the word that ends a field, so no name, whatever it holds, looks like a further field or row.
    end = f"|{secrets.token_hex(8)}|"
    answer = ask_slurm(
        "squeue",
        "--noheader",
        "--me",
        "--all",
        "--array",
        "--states=all",
        *([f"--name={job_name}"] if job_name else []),
        f"--Format={','.join(f'{field}:{end}' for field in _FIELDS)}",
        cluster=cluster,
        variables={"SLURM_TIME_FORMAT": "%s"},
    )
    *fields, _rest = answer.split(end)
    if len(fields) % len(_FIELDS):
        raise ClusterError(f"squeue answers with {len(fields)} fields, which are no rows of {len(_FIELDS)}")
    rows = {}
    for start in range(0, len(fields), len(_FIELDS)):
        job_id, state, restarts, reason, submitted, nodes, name = fields[start : start + len(_FIELDS)]
        rows[job_id.split()[-1]] = QueueRow(
            state=state.strip(),
            restarts=int(restarts) if restarts.strip().isdigit() else 0,
            reason=reason.strip(),
            job_name=name,
            submitted_at=int(submitted) if submitted.strip().isdigit() else None,
            nodes=nodes.strip(),
        )
    return rows


def node_names(nodes: str) -> frozenset[str]:
    """Returns the names of the nodes in SLURM's short form, such as `gpu[01-04]`. Raises ClusterError."""
    if not nodes:
        return frozenset()
    if not any(letter in nodes for letter in "[,"):
        return frozenset({nodes})
    return frozenset(ask_slurm("scontrol", "show", "hostnames", nodes, cluster="").split())


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """One node as sinfo shows it. `reason`: why somebody, or SLURM itself, took it out of use; empty where nobody did."""

    name: str
    state: str
    reason: str = ""

    @property
    def is_usable(self) -> bool:
        """Whether it runs jobs or could."""
        return not any(word in self.state for word in _UNUSABLE)


def usable_nodes(partition: str | None, *, cluster: str | None = None) -> frozenset[str]:
    """Returns the nodes of a partition (None: the default one) that run jobs or could. Raises ClusterError."""
    return frozenset(node.name for node in read_nodes(partition, cluster=cluster) if node.is_usable)


def read_nodes(partition: str | None, *, cluster: str | None = None) -> list[NodeRow]:
    """Returns the nodes of a partition (None: the default one) by name. Raises ClusterError."""
    end = f"|{secrets.token_hex(8)}|"
    asked = [f"--partition={partition}"] if partition else []
    fields = [f"{field}:{end}" for field in _NODE_FIELDS]
    answer = ask_slurm("sinfo", "--noheader", "--Node", *asked, f"--Format={','.join(fields)}", cluster=cluster)
    *words, _rest = answer.split(end)
    rows = [words[start : start + len(_NODE_FIELDS)] for start in range(0, len(words), len(_NODE_FIELDS))]
    default = [row for row in rows if row[1].strip().endswith("*")]
    rows = rows if partition or not default else default
    found = {
        name.strip(): NodeRow(
            name=name.strip(), state=state.strip(), reason="" if reason.strip() == "none" else reason.strip()
        )
        for name, _, state, reason in rows
    }
    return [found[name] for name in sorted(found)]
