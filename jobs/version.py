"""Which program this is: its version, and a digest of its files as they are here. Light to import: no torch.

A job starts long after its driver, perhaps on another machine. By the digest both notice an edit or an upgrade in between,
which a version number of a checkout does not tell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

VERSION = "0.1.0"
"""The one place of the number: pyproject.toml reads it from here."""
PACKAGES = ("cluster", "jobs", "manifests", "pab", "pipeline")
CODE = Path(__file__).parent.parent
"""Where the packages lie: a checkout, site-packages, or a copy that a submit made."""
_KINDS = frozenset({".py", ".json", ".html", ".svg", ".css", ".js", ".csv"})
"""Weights and the demo's manifest are left out: clips' digests tell those, and megabytes would be read at every start."""


@cache
def code_digest() -> str:
    """Returns 12 hex digits that change when a file of the program does. Read once: what is loaded later may be newer."""
    return digest_of(CODE)


def digest_of(folder: Path) -> str:
    """Returns the digest of the packages in a folder: of the names and bytes of their files, in order."""
    found = hashlib.sha256()
    for path in sorted(_files(folder)):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        found.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return found.hexdigest()[:12]


def _files(folder: Path) -> Iterator[Path]:
    for package in PACKAGES:
        yield from (path for path in (folder / package).rglob("*") if path.suffix in _KINDS and path.name[0] != ".")


def program() -> str:
    """Returns version and digest as one text, such as `0.1.0 (code 1f2e3d4c5b6a)`."""
    return f"{VERSION} (code {code_digest()})"


def other_than(driver: str | None, job: str) -> str | None:
    """Returns in words that a job runs another program than its driver; None if the same, or if the driver's is not known.

    The texts are in quotes, so that summaries count what several clips say of several versions as one.
    """
    if driver is None or job == driver:
        return None
    return f"the job ran pab-pipeline '{job}', its driver is '{driver}'"
