"""What a job leaves in its folder, read back: rank 0's result and the end of the error output."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterable
from pathlib import Path

from submitit.core.utils import JobPaths

from cluster.job import ClusterError
from cluster.pickled import FormatError, read_outcome, unseal

_TAIL_BYTES = 4000
_DAMAGED = "damaged"


def private_folder(folder: Path) -> Path:
    """Makes a folder that only this user may enter: pickles and scripts in it are world-readable otherwise.

    Raises ClusterError if it cannot be made, or if another user's folder or a link has its name.
    """
    folder = folder.expanduser().absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise ClusterError(f"cannot make a private folder {folder}: {error}; make room there, or mend it") from error
    try:
        if os.fstat(handle).st_uid != os.geteuid():
            raise ClusterError(f"{folder} is another user's; remove it, or work in another folder")
        os.fchmod(handle, 0o700)
    finally:
        os.close(handle)
    return folder


def rank_zero_attempt(folder: Path, job_id: str) -> int | None:
    """Returns the start of the job that left rank 0's result, whichever version of the program ran it.

    None when there is no result, when it is damaged, or when the call raised.
    """
    result = _rank_zero_result(folder, job_id)
    attempt = None if result is None else str(result["attempt"])
    return int(attempt) if attempt and attempt.isdigit() else None


def rank_zero_value(folder: Path, job_id: str) -> object | None:
    """Returns rank 0's value; None when there is none, when it is damaged, or when the call raised.

    Raises ClusterError if another version of the program ran the job.
    """
    result = _rank_zero_result(folder, job_id)
    try:
        return None if result is None else unseal(result)
    except FormatError as error:
        raise ClusterError(
            f"job {job_id}: another version of the program ran it, what it returned is not read here ({error}); its clips "
            "are in the bucket"
        ) from error


def _rank_zero_result(folder: Path, job_id: str) -> dict[str, object] | None:
    with contextlib.suppress(OSError):
        os.listdir(folder)  # noqa: PTH208  (opening the folder makes NFS look again)
    outcome, value = _read_result(folder, job_id, 0)
    return value if outcome == "success" and isinstance(value, dict) and "attempt" in value else None


def rank_trace(folder: Path, job_id: str, ranks: Iterable[int]) -> str | None:
    """Returns the end of the traceback of the rank that raised first, or that its result is damaged; None if neither."""
    raised = []
    for rank in ranks:
        with contextlib.suppress(OSError):  # most ranks of a job that was killed leave none
            raised.append((_result_path(folder, job_id, rank).stat().st_mtime_ns, rank))
    for _, rank in sorted(raised):
        outcome, trace = _read_result(folder, job_id, rank)
        if outcome in ("error", _DAMAGED):
            return f"rank {rank}: {str(trace)[-_TAIL_BYTES:].strip()}"
    return None


def _result_path(folder: Path, job_id: str, rank: int) -> Path:
    return Path(JobPaths(folder, job_id=job_id, task_id=rank).result_pickle)


def _read_result(folder: Path, job_id: str, rank: int) -> tuple[str, object]:
    path = _result_path(folder, job_id, rank)
    try:
        return read_outcome(path.read_bytes())
    except FileNotFoundError:
        return "none", None
    except (OSError, pickle.UnpicklingError) as error:
        # Of a full disk or a power cut. What the job rendered is in the bucket, so it counts as one that left no result.
        return _DAMAGED, f"its result {path} cannot be read: {error!r}"


def error_tail(logs: Iterable[Path]) -> str | None:
    """Returns the end of the first log that says anything, or None."""
    for path in logs:
        try:
            with path.open("rb") as log:
                log.seek(max(0, path.stat().st_size - _TAIL_BYTES))
                text = log.read().decode(errors="replace").strip()
        except OSError:
            continue
        if text:
            return text
    return None


def rank_logs(folder: Path, job_id: str, ranks: Iterable[int]) -> list[Path]:
    """Returns where the ranks' error output lies."""
    return [JobPaths(folder, job_id=job_id, task_id=rank).stderr for rank in ranks]
