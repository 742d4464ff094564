"""A job's local folder for temporary files. It is removed with the job; the next job here removes what killed jobs left."""

from __future__ import annotations

import fcntl
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jobs.log import log_event

_LOG = logging.getLogger(__name__)
_PREFIX = "pab-job-"
_LOCK = ".owner"


@contextmanager
def open_scratch() -> Iterator[Path]:
    """Yields an empty folder for this process alone, in the system's folder for temporary files (TMPDIR).

    The process holds a lock on it as long as it lives, so that a later job on this machine knows which folders are left
    over: a killed process cannot remove its folder, and SLURM does not do it either.
    """
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with (folder / f"{_LOCK}.new").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # It is locked before it gets its name, or a job that starts now would take it for left over.
            (folder / f"{_LOCK}.new").rename(folder / _LOCK)
            yield folder


def remove_left_over() -> list[Path]:
    """Removes the folders of this user's ended jobs; returns them. Folders that cannot be removed stay."""
    removed = []
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Without a lock file, its owner is about to make one. Without access, it is another user's.
        with suppress(OSError), (folder / _LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
            removed.append(folder)
    if removed:
        log_event(_LOG, "left_over_removed", folders=len(removed))
    return removed
