"""What is kept on this machine about the arrays of a run, so that a later process finds their jobs and no others.

Every array has a folder of its own with a random word in its name; its jobs' name in the queue is made of the run's id
and that word. So a job is known by its name even if the answer of sbatch was lost, or its record is damaged. A record is
written before sbatch is asked, and once more with the ids that it gave.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.job import ClusterError
from cluster.slurm_job import Submitted
from cluster.slurm_queue import QueueRow
from cluster.whole_files import read_json, tell_damaged, write_json

RECORD = "submitted.json"
CANCEL_MARK = "cancel-asked"
ARRAY_FOLDER = "slurm-"
_WORD = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayRecord:
    """One array. `ids`: the jobs' ids, in the order of `names`; empty while sbatch has not answered.

    `refused`: sbatch has said no, so no job of this name can come. `cluster`: the name of the SLURM cluster that was asked;
    empty in records of versions that knew one only.
    """

    folder: Path
    job_name: str
    names: tuple[str, ...]
    num_ranks: int
    asked_at: float
    ids: tuple[str, ...] = ()
    submitted_at: int | None = None
    refused: bool = False
    cluster: str = ""

    @property
    def is_open(self) -> bool:
        """Whether it is unknown what became of it."""
        return not self.ids and not self.refused

    def write(self) -> None:
        """Writes it. Raises ClusterError if the disk does not take it."""
        document = {
            "job_name": self.job_name,
            "names": self.names,
            "num_ranks": self.num_ranks,
            "asked_at": self.asked_at,
            "ids": self.ids,
            "submitted_at": self.submitted_at,
            "refused": self.refused,
            "cluster": self.cluster,
        }
        try:
            write_json(self.folder / RECORD, document)
        except OSError as error:
            raise ClusterError(f"cannot write {self.folder / RECORD}: {error}; make room there") from error

    @classmethod
    def lost(cls, folder: Path, job_name: str) -> ArrayRecord | None:
        """Returns the record of an array of which only the jobs' name is known; None for a name that is none of an array."""
        word = job_name.rpartition("-")[2]
        if not _WORD.fullmatch(word):
            return None
        return cls(folder=folder / f"{ARRAY_FOLDER}{word}", job_name=job_name, names=(), num_ranks=1, asked_at=0.0)

    def refuse(self) -> ArrayRecord:
        """Returns it as one that sbatch did not take."""
        return replace(self, refused=True)

    def answered(self, first_id: str) -> ArrayRecord:
        """Returns it with the ids that follow from sbatch's answer."""
        ids = (first_id,) if len(self.names) == 1 else tuple(f"{first_id}_{index}" for index in range(len(self.names)))
        return replace(self, ids=ids)

    def found(self, rows: Mapping[str, QueueRow], noted: Mapping[str, str] | None = None) -> ArrayRecord | None:
        """Returns it with the ids and the submit time of its jobs in the queue, which are known by their name; or None.

        `noted`: by id, what the jobs are called, for an array whose record is not here.
        """
        mine = {job_id: row for job_id, row in rows.items() if row.job_name == self.job_name}
        if not mine:
            return None
        times = [row.submitted_at for row in mine.values() if row.submitted_at is not None and not row.restarts]
        known = self if self.ids or not self.names else self.answered(next(iter(mine)).partition("_")[0])
        if not known.names:  # its record is damaged, or on another machine, and with it what the jobs are called
            ids = tuple(sorted(mine, key=_task))
            known = replace(known, ids=ids, names=tuple((noted or {}).get(each, f"task-{each}") for each in ids))
        return replace(known, submitted_at=min(times) if times else None)

    def jobs(self) -> list[Submitted]:
        """Returns its jobs; none while their ids are unknown."""
        return [
            Submitted(
                name=name,
                id=job_id,
                num_ranks=self.num_ranks,
                job_name=self.job_name,
                folder=self.folder,
                submitted_at=self.submitted_at,
            )
            for name, job_id in zip(self.names, self.ids, strict=False)
        ]


def name_prefix(run_id: str) -> str:
    """Returns how the names of all jobs of a run begin: in the name, because every SLURM has it and every client shows it."""
    return f"pab-{run_id}-"


def new_record(folder: Path, run_id: str, names: Sequence[str], num_ranks: int, *, cluster: str = "") -> ArrayRecord:
    """Returns a record of an array to come, in a folder of `folder` that is not there yet."""
    word = uuid.uuid4().hex[:12]
    return ArrayRecord(
        folder=folder / f"{ARRAY_FOLDER}{word}",
        job_name=f"{name_prefix(run_id)}{word}",
        names=tuple(names),
        num_ranks=num_ranks,
        asked_at=time.time(),
        cluster=cluster,
    )


def example_record(folder: Path, run_id: str) -> ArrayRecord:
    """Returns a record as `new_record` makes it, of an array that is not asked for."""
    return ArrayRecord(
        folder=folder / f"{ARRAY_FOLDER}dry-run",
        job_name=f"{name_prefix(run_id)}dry-run",
        names=(),
        num_ranks=1,
        asked_at=0.0,
    )


def read_records(folder: Path, run_id: str) -> Iterator[ArrayRecord]:
    """Yields the arrays of a run, the oldest first; one whose record is lost or damaged is there without names and ids."""
    arrays = [path for path in folder.glob(f"{ARRAY_FOLDER}*") if _WORD.fullmatch(path.name.removeprefix(ARRAY_FOLDER))]
    for path in sorted(arrays, key=lambda path: path.stat().st_mtime_ns):
        document = read_json(path / RECORD)
        try:
            yield _record(path, document)
        except (KeyError, TypeError, ValueError) as error:
            if document is not None:
                tell_damaged(path / RECORD, repr(error))
            word = path.name.removeprefix(ARRAY_FOLDER)
            asked_at = path.stat().st_mtime
            # The second name is that of versions that did not yet name the run.
            for job_name, asked in ((f"{name_prefix(run_id)}{word}", asked_at), (f"pab-{word}", 0.0)):
                yield ArrayRecord(folder=path, job_name=job_name, names=(), num_ranks=1, asked_at=asked)


def read_record(folder: Path) -> ArrayRecord | None:
    """Returns the record of the array in a folder; None if it is lost or damaged."""
    try:
        return _record(folder, read_json(folder / RECORD))
    except (KeyError, TypeError, ValueError):
        return None


def _record(folder: Path, document: Any) -> ArrayRecord:
    if isinstance(document, list) and document:
        # As versions wrote it that did not yet name the run.
        return ArrayRecord(
            folder=folder,
            job_name=str(document[0]["job_name"]),
            names=tuple(str(entry["name"]) for entry in document),
            num_ranks=int(document[0]["num_ranks"]),
            asked_at=0.0,
            ids=tuple(str(entry["id"]) for entry in document),
        )
    submitted_at = document["submitted_at"]
    return ArrayRecord(
        folder=folder,
        job_name=str(document["job_name"]),
        names=tuple(map(str, document["names"])),
        num_ranks=int(document["num_ranks"]),
        asked_at=float(document["asked_at"]),
        ids=tuple(map(str, document["ids"])),
        submitted_at=None if submitted_at is None else int(submitted_at),
        refused=bool(document["refused"]),
        cluster=str(document.get("cluster", "")),
    )


def cancel_mark(folder: Path) -> str | None:
    """Returns what the last `cancel` of the run left in its folder, which is another thing each time; None if none did."""
    document = read_json(folder / CANCEL_MARK)
    return None if document is None else str(document)


def leave_cancel_mark(folder: Path) -> None:
    """Leaves a new mark: a submit that is just asking sbatch sees it, and takes its jobs back. Raises ClusterError."""
    try:
        write_json(folder / CANCEL_MARK, uuid.uuid4().hex)
    except OSError as error:
        raise ClusterError(f"cannot write {folder / CANCEL_MARK}: {error}; make room there") from error


def _task(job_id: str) -> tuple[int, ...]:
    return tuple(int(part) for part in job_id.split("_") if part.isdigit())
