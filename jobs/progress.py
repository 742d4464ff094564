"""How a job announces its clips to a listener outside. The job never waits for the listener and never depends on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self


class ClipProgress(Protocol):
    """Hears of a job's clips on rank 0. Picklable, cheap, and silent about its own troubles after one log line."""

    def open(self, worker_name: str, clip_ids: Sequence[str]) -> OpenProgress:
        """Connects under a name such as `job-00007` and announces the clips to come, in order."""


class OpenProgress(Protocol):
    """A connected progress listener, used as a context manager for the length of the job."""

    def started(self, clip_id: str) -> None:
        """Tells that the clip's denoising begins."""

    def finished(self, clip_id: str, outcome: str, elapsed_s: float) -> None:
        """Tells how the clip ended: "rendered", "failed" or "skipped"."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class NoProgress:
    """Nobody listens."""

    def open(self, worker_name: str, clip_ids: Sequence[str]) -> NoProgress:
        """Returns itself."""
        return self

    def started(self, clip_id: str) -> None:
        """Does nothing."""

    def finished(self, clip_id: str, outcome: str, elapsed_s: float) -> None:
        """Does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None
