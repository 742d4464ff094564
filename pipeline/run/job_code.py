"""Which files SLURM jobs run: a copy of this program beside the folders of runs, one for each version of its files."""

from __future__ import annotations

from pathlib import Path

from cluster.code_copy import CodeCopy
from cluster.old_copies import remove_old_copies
from jobs.version import PACKAGES, VERSION, code_digest
from pipeline.screen import Screen

JOBS = Path("runs/.jobs")
"""Where the files of jobs are, in the folder in which `submit` is called."""


def code_copy(*, ship_code: bool) -> CodeCopy | None:
    """Returns the copy that jobs are to run; None if they run the driver's own files."""
    if not ship_code:
        return None
    return CodeCopy(folder=JOBS.absolute() / "code", name=f"{VERSION}-{code_digest()}", packages=PACKAGES)


def forget_old_copies(screen: Screen) -> None:
    """Removes the copies that no job uses any more, and says so."""
    removed = remove_old_copies(JOBS.absolute())
    if removed.names:
        copies = "1 copy" if len(removed.names) == 1 else f"{len(removed.names)} copies"
        screen.note(f"removed {copies} of the program that no job uses any more, {removed.size_bytes / 1e6:,.0f} MB")
