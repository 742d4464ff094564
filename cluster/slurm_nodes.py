"""Keeps jobs off nodes that were seen to kill them, never off the last ones, and says when too few are left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from cluster.slurm_clients import ask_slurm
from cluster.slurm_job import SlurmJob
from cluster.slurm_queue import NodeRow, node_names, read_nodes, usable_nodes
from cluster.slurm_settings import SlurmSettings

SHOWN_NODES = 8
"""Of those that cannot be used, named in a message."""


def may_avoid(
    settings: SlurmSettings, avoided: frozenset[str], nodes: frozenset[str], *, needed: int
) -> frozenset[str]:
    """Returns `avoided` and those of `nodes` that can be done without: `needed` usable ones are left. Raises ClusterError."""
    left = usable_nodes(_partition(settings), cluster=settings.cluster) - _theirs(settings) - avoided
    for node in sorted(nodes - avoided):
        if len(left - {node}) >= max(1, needed):
            left -= {node}
            avoided |= {node}
    return avoided


def keep_off(settings: SlurmSettings, avoided: frozenset[str], waiting: Sequence[SlurmJob]) -> None:
    """Tells SLURM to start these jobs, which wait, on other nodes. Raises ClusterError."""
    alike: defaultdict[tuple[str, frozenset[str]], list[str]] = defaultdict(list)
    for job in waiting:
        array, _, task = job.id.partition("_")
        alike[array, job.avoid_nodes].append(task)
    for (array, own), tasks in alike.items():
        # Of an array all its waiting jobs are told; for those that start meanwhile scontrol says that it is too late.
        ids = f"{array}_[{','.join(tasks)}]" if tasks != [""] else array
        nodes = ",".join(sorted(avoided | own | _theirs(settings)))
        ask_slurm("scontrol", "update", f"JobId={ids}", f"ExcNodeList={nodes}", cluster=settings.cluster)


def relax(
    settings: SlurmSettings, avoided: frozenset[str], waiting: Sequence[SlurmJob], *, needed: int
) -> dict[SlurmJob, frozenset[str]]:
    """Lets jobs start where clips of theirs failed, if they find too few nodes else; returns the nodes that each got back.

    Such nodes are avoided as far as the cluster can do without them, and others may have left it since. Those that kill
    jobs of the whole run (`avoided`) are not given back: a start there would be lost. Raises ClusterError.
    """
    free = usable_nodes(_partition(settings), cluster=settings.cluster) - _theirs(settings) - avoided
    given: dict[SlurmJob, frozenset[str]] = {}
    for job in waiting:
        missing = needed - len(free - job.avoid_nodes)
        spare = sorted(free & job.avoid_nodes)
        if 0 < missing <= len(spare):
            given[job] = frozenset(spare[:missing])
            job.avoid_nodes -= given[job]
    if given:
        keep_off(settings, avoided, list(given))
    return given


def shortage(
    settings: SlurmSettings, avoided: frozenset[str], waiting: Sequence[SlurmJob], *, needed: int
) -> str | None:
    """Says which job that waits finds fewer nodes than it needs, and why; None if all find enough. Raises ClusterError.

    Nodes that run other jobs count: those end. What a constraint or a reservation leaves of them is not known here.
    """
    nodes, theirs = read_nodes(_partition(settings), cluster=settings.cluster), _theirs(settings)
    for own in dict.fromkeys(job.avoid_nodes for job in waiting):
        lost = {node.name: why for node in nodes if (why := _why_not(node, avoided, own, theirs))}
        if (left := len(nodes) - len(lost)) < needed:
            alike = [job.name for job in waiting if job.avoid_nodes == own]
            who = alike[0] if len(alike) == 1 else f"{alike[0]} and {len(alike) - 1} more"
            waits = "waits" if len(alike) == 1 else "wait"
            told = [f"{name} {why}" for name, why in lost.items()]
            rest = [f"{len(told) - SHOWN_NODES} more"] if len(told) > SHOWN_NODES else []
            return (
                f"{who} {waits} for {_counted(needed)}, {left} {'is' if left == 1 else 'are'} usable: "
                f"{'; '.join([*told[:SHOWN_NODES], *rest]) or 'the partition has no more'}"
            )
    return None


def _why_not(node: NodeRow, avoided: frozenset[str], own: frozenset[str], theirs: frozenset[str]) -> str | None:
    if not node.is_usable:
        return f"{node.state} ({node.reason})" if node.reason else node.state
    if node.name in theirs:
        return "excluded by --slurm exclude"
    if node.name in avoided:
        return "excluded by this run, because jobs died there without a clip"
    return "excluded, because clips of the job failed there or jobs died" if node.name in own else None


def _counted(number: int) -> str:
    return f"{number} node{'' if number == 1 else 's'}"


def _partition(settings: SlurmSettings) -> str | None:
    partition = settings.extra.get("partition") or settings.partition
    return str(partition) if partition else None


def _theirs(settings: SlurmSettings) -> frozenset[str]:
    return node_names(str(settings.extra.get("exclude") or ""))
