"""A job's local folder for temporary files. It goes with the job; what a killed job left, the next one here removes."""

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
    """Yields an empty folder of this process's own, where the system keeps temporary files (TMPDIR).

    Its owner holds a lock as long as it lives, so that a later job on this machine sees which folders are left over: a
    process that is killed removes nothing, and SLURM does not either.
    """
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with (folder / f"{_LOCK}.new").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Locked before it has its name: another job that starts now would take an unlocked one for left over.
            (folder / f"{_LOCK}.new").rename(folder / _LOCK)
            yield folder


def remove_left_over() -> list[Path]:
    """Removes the folders of this user's jobs that no longer live; returns them. What cannot be removed is left."""
    removed = []
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # No lock file: its owner is about to make it. No access: another user's.
        with suppress(OSError), (folder / _LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
            removed.append(folder)
    if removed:
        log_event(_LOG, "left_over_removed", folders=len(removed))
    return removed
