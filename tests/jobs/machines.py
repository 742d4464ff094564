"""Jobs as processes of their own: on several ranks, through submitit or forked, or one process that can be killed."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import submitit

from jobs.render import RenderShard
from tests.forked import Forked, start_forked


def run_with_submitit(job: Callable[[], Any], folder: Path, ranks: int) -> list[Any]:
    """Returns every rank's value. Raises submitit's error when a rank fails."""
    executor = submitit.LocalExecutor(folder=folder)
    executor.update_parameters(tasks_per_node=ranks, timeout_min=3, setup=["export OMP_NUM_THREADS=1"])
    return executor.submit(job).results()


def run_on_forked_ranks(job: Callable[[], Any], folder: Path, ranks: int) -> list[Any]:
    """Returns every rank's value, like `run_with_submitit`, whose environment the ranks find here too.

    For what a job does; how submitit starts and ends its ranks is seen only there. Raises RankError when a rank fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    job_id = uuid.uuid4().hex[:8]
    places = [folder / f"{job_id}_{rank}" for rank in range(ranks)]
    started = []
    for rank, place in enumerate(places):
        place.mkdir()
        environment = {
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_FOLDER": str(folder),
            "SUBMITIT_LOCAL_JOB_ID": job_id,
            "SUBMITIT_LOCAL_NTASKS": str(ranks),
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_GLOBALID": str(rank),
            "SUBMITIT_LOCAL_LOCALID": str(rank),
        }
        started.append(start_forked(_run_job, job, place, stderr=place / "stderr", environment=environment))
    codes = [process.wait(180) for process in started]
    if any(codes):
        raise RankError("\n".join((place / "stderr").read_text() for place in places))
    return [outcome_of(place) for place in places]


class RankError(Exception):
    """A forked rank failed; the message is the error output of all ranks."""


def start_process(job: RenderShard, folder: Path) -> Forked:
    """Starts the job alone in a process; its value lies in `folder/outcome` when it ended well."""
    folder.mkdir(parents=True, exist_ok=True)
    return start_forked(_run_job, job, folder, stderr=folder / "stderr")


def outcome_of(folder: Path) -> Any:
    return pickle.loads((folder / "outcome").read_bytes())


def _run_job(job: Callable[[], Any], folder: Path) -> None:
    (folder / "outcome").write_bytes(pickle.dumps(job()))
