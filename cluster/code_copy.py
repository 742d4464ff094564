"""A copy of the program for jobs that start later, in a folder that the nodes see.

A job waits for hours, and is started again after days. It runs the files of the copy, so an edit, an upgrade or another
branch in the driver's folder does not reach it, and the nodes need no installation of the program itself.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from cluster.environment import ROOT
from cluster.job import ClusterError
from cluster.job_files import private_folder

_PASSING = shutil.ignore_patterns(".*", "*~", "*.pyc.*")
"""What editors and interpreters write for a moment only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeCopy:
    """Where a copy is to lie. `name`: of its folder in `folder`, another one for other files. `packages`: what is copied."""

    folder: Path
    name: str
    packages: tuple[str, ...]

    @property
    def place(self) -> Path:
        """The folder that holds the packages: what jobs find by PYTHONPATH."""
        return self.folder.expanduser().absolute() / self.name

    def make(self) -> None:
        """Makes the copy unless it is there. Two at once are no harm. Raises ClusterError for a full disk."""
        # Its time says that a submit has taken it, so that none removes it meanwhile (`old_copies.py`).
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.place)
            return
        coming = private_folder(self.folder) / f".{self.name}-{uuid.uuid4().hex[:12]}"
        try:
            for package in self.packages:
                # With what is compiled already: many jobs start at once, and each would compile every file.
                shutil.copytree(ROOT / package, coming / package, ignore=_PASSING)
            coming.rename(self.place)
        except OSError as error:
            if not self.place.is_dir():
                raise ClusterError(
                    f"cannot copy the program to {self.place} for jobs: {error}; make room there, or --no-ship-code"
                ) from error
        finally:
            shutil.rmtree(coming, ignore_errors=True)
