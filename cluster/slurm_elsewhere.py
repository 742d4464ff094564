"""The jobs of a run in several SLURM clusters of a site: a submit is of one cluster, `cancel` is of all."""

from __future__ import annotations

import logging
from pathlib import Path

from cluster.job import ClusterError
from cluster.slurm_clients import asked_cluster
from cluster.slurm_queue import read_queue
from cluster.slurm_record import read_records

_LOG = logging.getLogger(__name__)


def clusters_of_run(folder: Path, run_id: str) -> list[str]:
    """Returns the clusters in which a run had jobs, as the clients take them (empty: this machine's own), each once.

    Among them is the one that is asked where none is named: for arrays whose record is damaged. Raises ClusterError.
    """
    named = dict.fromkeys(record.cluster for record in read_records(folder, run_id) if record.cluster)
    return list(dict.fromkeys([asked_cluster(), *(asked_cluster(name) for name in named)]))


def jobs_elsewhere(folder: Path, run_id: str, cluster: str) -> dict[str, list[str]]:
    """Returns the ids of a run's living jobs in other clusters than this one, by the cluster. `cluster`: its real name."""
    names: dict[str, set[str]] = {}
    for record in read_records(folder, run_id):
        if record.cluster not in ("", cluster) and not record.refused:
            names.setdefault(record.cluster, set()).add(record.job_name)
    found = {}
    for other, wanted in names.items():
        try:
            rows = read_queue(cluster=asked_cluster(other))
        except ClusterError as error:
            _LOG.warning("jobs of earlier submits in cluster %s are not looked for: %s", other, error)
            continue
        ids = [job_id for job_id, row in rows.items() if row.job_name in wanted and row.live_state is not None]
        if ids:
            found[other] = ids
    return found
