"""Keeps jobs off nodes that were seen to kill them, and never off the last ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from cluster.slurm_job import SlurmJob
from cluster.slurm_queue import node_names, usable_nodes
from cluster.slurm_settings import SlurmSettings, ask_slurm


def may_avoid(
    settings: SlurmSettings, avoided: frozenset[str], nodes: frozenset[str], *, needed: int
) -> frozenset[str]:
    """Returns `avoided` and those of `nodes` that can be done without: `needed` usable ones are left. Raises ClusterError."""
    partition = settings.extra.get("partition") or settings.partition
    left = usable_nodes(str(partition) if partition else None) - _theirs(settings) - avoided
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
        ask_slurm("scontrol", "update", f"JobId={ids}", f"ExcNodeList={nodes}")


def _theirs(settings: SlurmSettings) -> frozenset[str]:
    return node_names(str(settings.extra.get("exclude") or ""))
