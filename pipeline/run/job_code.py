"""Which files SLURM jobs run: a copy of this program beside the folders of runs, one for each version of its files."""

from __future__ import annotations

from pathlib import Path

from cluster.code_copy import CodeCopy
from jobs.version import PACKAGES, VERSION, code_digest

JOBS = Path("runs/.jobs")
"""Where the files of jobs are, in the folder in which `submit` is called."""


def code_copy(*, ship_code: bool) -> CodeCopy | None:
    """Returns the copy that jobs are to run; None if they run the driver's own files."""
    if not ship_code:
        return None
    return CodeCopy(folder=JOBS.absolute() / "code", name=f"{VERSION}-{code_digest()}", packages=PACKAGES)
