"""Removes copies of the program that no job needs any more: every edit or upgrade leaves one in `runs/.jobs/code`.

A copy is kept if any job in the queue has a script that names it, whatever its state: SLURM shows jobs for minutes after
their end, and a driver that lives asks for lost ones again within that time. It is kept too if a submit has taken it within
a day, if nobody knows whether SLURM took an array, and if a queue cannot be read.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.job import ClusterError
from cluster.slurm_clients import asked_cluster
from cluster.slurm_queue import read_queue
from cluster.slurm_record import ARRAY_FOLDER, ArrayRecord, read_record
from cluster.slurm_script import SCRIPT

_LOG = logging.getLogger(__name__)
YOUNG_S = 86400.0
"""A copy that was taken later than so long ago stays: its jobs may be on their way to the queue."""

ReadNames = Callable[[str], Collection[str]]
"""Returns the names of this user's jobs in the queue of a cluster, those that have just ended too. Raises ClusterError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """The copies that were removed, and their size."""

    names: tuple[str, ...]
    size_bytes: int


def names_in_queue(cluster: str) -> Collection[str]:
    """Returns the names of this user's jobs that a cluster shows. `cluster`: its name, empty for this machine's own."""
    rows = read_queue(cluster=asked_cluster(cluster) if cluster else "")
    return {row.job_name for row in rows.values()}


def remove_old_copies(jobs: Path, *, read_names: ReadNames = names_in_queue, now_s: float | None = None) -> Removed:
    """Removes the copies in `jobs/code` that no job uses. `jobs`: the folder that holds those of runs.

    Raises nothing for a copy that cannot be removed: it is told in the log.
    """
    now_s = time.time() if now_s is None else now_s
    old = {place.name: place for place in _copies(jobs / "code") if not _is_young(place, now_s)}
    used = _used(jobs, set(old), read_names, now_s) if old else set()
    gone, size_bytes = [], 0
    for name, place in sorted(old.items()):
        if name not in used and (size := _remove(place, now_s)) is not None:
            gone.append(name)
            size_bytes += size
    return Removed(names=tuple(gone), size_bytes=size_bytes)


def _copies(folder: Path) -> Iterator[Path]:
    # Also what a killed submit has half made, or a killed removal half removed: hidden, and no script names it.
    with contextlib.suppress(FileNotFoundError):
        yield from (place for place in folder.iterdir() if place.is_dir() and not place.is_symlink())


def _is_young(place: Path, now_s: float) -> bool:
    try:
        return now_s - place.stat().st_mtime < YOUNG_S
    except FileNotFoundError:
        return True


def _used(jobs: Path, names: set[str], read_names: ReadNames, now_s: float) -> set[str]:
    """Returns those of the copies that jobs use or may use."""
    used: set[str] = set()
    in_queue: dict[str, Collection[str] | None] = {}
    for script in jobs.glob(f"*/{ARRAY_FOLDER}*/{SCRIPT}"):
        try:
            text = script.read_text(errors="replace")
        except OSError as error:
            _LOG.warning("copies of the program stay as they are: %s cannot be read: %s", script, error)
            return names
        for name in {name for name in names - used if f"/{name}" in text}:
            record = read_record(script.parent)
            cluster = "" if record is None else record.cluster
            if cluster not in in_queue:
                in_queue[cluster] = _names_or_none(cluster, read_names)
            if _is_needed(script.parent, record, in_queue[cluster], now_s):
                used.add(name)
    return used


def _names_or_none(cluster: str, read_names: ReadNames) -> Collection[str] | None:
    try:
        return read_names(cluster)
    except ClusterError as error:
        _LOG.warning("copies of the program that jobs of %s may use stay: %s", cluster or "this cluster", error)
        return None


def _is_needed(folder: Path, record: ArrayRecord | None, in_queue: Collection[str] | None, now_s: float) -> bool:
    if in_queue is None:
        return True
    # The word of the array ends its jobs' name, so a damaged record is no loss.
    word = folder.name.removeprefix(ARRAY_FOLDER)
    if any(name.endswith(f"-{word}") for name in in_queue):
        return True
    return record is not None and record.is_open and now_s - record.asked_at < YOUNG_S


def _remove(place: Path, now_s: float) -> int | None:
    """Removes a copy; returns its bytes, or None if a submit has taken it meanwhile or it cannot be removed."""
    hidden = place.with_name(f".old-{uuid.uuid4().hex[:12]}")
    try:
        place.rename(hidden)
        if _is_young(hidden, now_s):
            # A submit marked it between the question and the removal. One that comes later finds none and makes another.
            hidden.rename(place)
            return None
        size = sum(file.stat().st_size for file in hidden.rglob("*") if file.is_file())
        shutil.rmtree(hidden)
    except OSError as error:
        _LOG.warning("the copy of the program %s cannot be removed: %s", place, error)
        return None
    return size
