"""Requests of jobs on a real SLURM, a cluster that asks the queue often, and what a rank noted."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

from cluster.job import JobRequest
from cluster.slurm import SlurmCluster
from cluster.slurm_settings import SlurmSettings

RUN_ID = "0123456789ab"


def request(
    call: Callable[[], object], name: str = "job-00000", *, nodes: int = 2, ranks: int = 2, gpus: int = 0
) -> JobRequest:
    return JobRequest(name=name, call=call, num_nodes=nodes, ranks_per_node=ranks, gpus_per_node=gpus, timeout_min=60)


def slurm_cluster(folder: Path, **settings: object) -> SlurmCluster:
    chosen = SlurmSettings(**settings)
    return SlurmCluster(folder / "jobs", chosen, run_id=RUN_ID, queue_interval_s=0.3, result_grace_s=2)


def seen(folder: Path, name: str) -> dict[str, object]:
    return dict(ast.literal_eval((folder / name).read_text()))
