"""A job's local folder for temporary files. It is removed with the job; the next job here removes what killed jobs left."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.log import log_event
from pab import own_folder

_LOG = logging.getLogger(__name__)


@contextmanager
def open_scratch() -> Iterator[Path]:
    """Yields an empty folder for this process alone, in a folder that only this user may enter (`pab.own_folder`)."""
    with own_folder.held_folder("job-") as folder:
        yield folder


def remove_left_over() -> list[Path]:
    """Removes the folders of this user's ended jobs; returns them. Folders that cannot be removed stay."""
    removed = own_folder.remove_left_over()
    if removed:
        log_event(_LOG, "left_over_removed", folders=len(removed))
    return removed
