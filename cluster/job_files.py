"""What a job leaves in its folder, read back: rank 0's result and the end of the error output."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable
from pathlib import Path

from submitit.core.utils import JobPaths

from cluster.job import ClusterError
from cluster.rank import RankResult

_TAIL_BYTES = 4000


def private_folder(folder: Path) -> Path:
    """Makes a folder that only this user may enter: pickles and scripts in it are world-readable otherwise."""
    folder = folder.expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def rank_zero_result(folder: Path, job_id: str) -> RankResult | None:
    """Reads rank 0's result; None when there is none or when the call raised. Raises ClusterError if it is unreadable."""
    os.listdir(folder)  # noqa: PTH208  (opening the folder makes NFS look again)
    outcome, value = _read_result(folder, job_id, 0)
    return value if outcome == "success" and isinstance(value, RankResult) else None


def rank_trace(folder: Path, job_id: str, ranks: Iterable[int]) -> str | None:
    """Returns the end of the traceback of the rank that raised first; None if none did."""
    raised = [
        (path.stat().st_mtime_ns, rank) for rank in ranks if (path := _result_path(folder, job_id, rank)).exists()
    ]
    for _, rank in sorted(raised):
        outcome, trace = _read_result(folder, job_id, rank)
        if outcome == "error":
            return f"rank {rank}: {str(trace)[-_TAIL_BYTES:].strip()}"
    return None


def _result_path(folder: Path, job_id: str, rank: int) -> Path:
    return Path(JobPaths(folder, job_id=job_id, task_id=rank).result_pickle)


def _read_result(folder: Path, job_id: str, rank: int) -> tuple[str, object]:
    path = _result_path(folder, job_id, rank)
    try:
        outcome, value = pickle.loads(path.read_bytes())
    except FileNotFoundError:
        return "none", None
    except Exception as error:
        raise ClusterError(f"job {job_id}: its result {path} cannot be read: {error!r}") from error
    return str(outcome), value


def error_tail(logs: Iterable[Path]) -> str | None:
    """Returns the end of the first log that says anything, or None."""
    for path in logs:
        try:
            with path.open("rb") as log:
                log.seek(max(0, path.stat().st_size - _TAIL_BYTES))
                text = log.read().decode(errors="replace").strip()
        except FileNotFoundError:
            continue
        if text:
            return text
    return None


def rank_logs(folder: Path, job_id: str, ranks: Iterable[int]) -> list[Path]:
    """Returns where the ranks' error output lies."""
    return [JobPaths(folder, job_id=job_id, task_id=rank).stderr for rank in ranks]
