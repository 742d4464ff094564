"""Jobs as processes of their own: through submitit on several ranks, or one process that can be killed."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import submitit

from jobs.render import RenderShard

ROOT = Path(__file__).parent.parent.parent


def run_with_submitit(job: RenderShard, folder: Path, ranks: int) -> list[Any]:
    """Returns every rank's value. Raises submitit's error when a rank fails."""
    executor = submitit.LocalExecutor(folder=folder)
    executor.update_parameters(tasks_per_node=ranks, timeout_min=3, setup=["export OMP_NUM_THREADS=1"])
    return executor.submit(job).results()


def start_process(job: RenderShard, folder: Path) -> subprocess.Popen[bytes]:
    """Starts the job alone in a process; its value lies in `folder/outcome` when it ended well."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job").write_bytes(pickle.dumps(job))
    with (folder / "stderr").open("ab") as stderr:
        return subprocess.Popen([sys.executable, "-m", "tests.jobs.machines", str(folder)], cwd=ROOT, stderr=stderr)


def outcome_of(folder: Path) -> Any:
    return pickle.loads((folder / "outcome").read_bytes())


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    value = pickle.loads((place / "job").read_bytes())()
    (place / "outcome").write_bytes(pickle.dumps(value))
