"""Progress on stderr while a run is driven: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from cluster.run_state import JobLine
from jobs.reports.number_formats import duration
from pipeline.run.state import Progress
from pipeline.screen import counted

_LINE_EVERY_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """How far the run is. `new` clips were rendered since `elapsed_s` ago.

    Only a driver knows the jobs, what was planned for the whole, and for how long its jobs have held GPUs (`gpu_s`).
    `progress`: which clips these numbers count.
    """

    num_clips: int
    rendered: int
    failed: int
    started: int
    new: int
    elapsed_s: float
    jobs_running: int | None = None
    jobs_waiting: int | None = None
    planned_s: float | None = None
    gpu_s: float = 0.0
    jobs: Sequence[JobLine] = ()
    progress: Progress | None = None

    @property
    def clips_per_hour(self) -> float | None:
        """The measured rate, once a clip is rendered."""
        return 3600 * self.new / self.elapsed_s if self.new and self.elapsed_s > 0 else None

    @property
    def clips_per_gpu_hour(self) -> float | None:
        """Clips by the time that jobs held GPUs, loading included, once a clip is rendered."""
        return 3600 * self.new / self.gpu_s if self.new and self.gpu_s > 0 else None

    @property
    def eta_s(self) -> float | None:
        """Seconds to go: by the measured rate, before there is one by the plan."""
        rate = self.clips_per_hour
        if rate is None:
            return None if self.planned_s is None else max(0.0, self.planned_s - self.elapsed_s)
        return 3600 * max(0, self.num_clips - self.rendered - self.failed) / rate

    def text(self) -> str:
        """Says it in one line."""
        rate = self.clips_per_hour
        parts = [
            f"{self.rendered:,} of {counted(self.num_clips, 'clip')}",
            f"{self.failed} failed",
            f"{self.started} running",
            f"jobs {self.jobs_running} running, {self.jobs_waiting} waiting" if self.jobs_running is not None else "",
            f"{counted(round(rate), 'clip')} per hour" if rate else "",
            f"{duration(self.eta_s)} to go" if self.eta_s is not None else "",
        ]
        return ", ".join(part for part in parts if part)


class Display(Protocol):
    """Shows snapshots while used as a context manager."""

    def update(self, snapshot: Snapshot) -> None:
        """Shows how far the run is."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class LineDisplay:
    """A line on stderr when something has changed, not more often than every 15 s."""

    def __init__(self) -> None:
        self._told_at = float("-inf")
        self._told: tuple[int, int] | None = None

    def update(self, snapshot: Snapshot) -> None:
        """Writes a line if something has changed."""
        ended = (snapshot.rendered, snapshot.failed)
        now = time.monotonic()
        if ended == self._told or now - self._told_at < _LINE_EVERY_S:
            return
        self._told, self._told_at = ended, now
        print(snapshot.text(), file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None


class BarDisplay:
    """A bar with counts, rate and time to go."""

    def __init__(self) -> None:
        self._progress = Bars(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"),
            console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self._task: TaskID = self._progress.add_task("starting", total=None)

    def update(self, snapshot: Snapshot) -> None:
        """Moves the bar."""
        self._progress.update(
            self._task, description=snapshot.text(), total=snapshot.num_clips,
            completed=snapshot.rendered + snapshot.failed,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()


def open_display() -> Display:
    """Returns bars where stderr is a terminal, else lines."""
    return BarDisplay() if sys.stderr.isatty() else LineDisplay()
