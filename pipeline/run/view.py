"""The Dask dashboard beside the driver: started with it, and started again when it has died. Nothing waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.dashboard import Dashboard
from cluster.dask_progress import DaskProgress, kept_tasks
from cluster.job import ClusterError
from cluster.run_state import RunState
from jobs.progress import ClipProgress, NoProgress
from pipeline.screen import Screen

MAX_REVIVALS = 20
"""A scheduler that dies more often than this is left dead: something on this machine ends it."""


@dataclass(slots=True, kw_only=True)
class View:
    """What shows a run. Without a dashboard the run goes on unseen."""

    screen: Screen
    dashboard: Dashboard | None = None
    revivals: int = 0

    def progress(self, num_jobs: int) -> ClipProgress:
        """Returns what jobs, so many at once, tell of their clips."""
        if self.dashboard is None:
            return NoProgress()
        return DaskProgress(scheduler_file=str(self.dashboard.scheduler_file), kept_tasks=kept_tasks(num_jobs))

    @property
    def url(self) -> str | None:
        """The dashboard's page, or None."""
        return self.dashboard.run_url if self.dashboard else None

    def show(self, state: RunState) -> None:
        """Shows the run on the dashboard's own page for it. A disk that is full costs the view only."""
        if self.dashboard is not None:
            with suppress(OSError):
                self.dashboard.show(state)

    def keep_alive(self) -> None:
        """Starts a scheduler again that has died; the jobs come back to it by themselves."""
        if self.dashboard is None or self.revivals >= MAX_REVIVALS:
            return
        try:
            revived = self.dashboard.revive()
        except ClusterError as error:
            self.revivals = MAX_REVIVALS
            self.screen.note(f"the dashboard is gone: {error}")
            return
        if revived:
            self.revivals += 1
            self.screen.note(f"the dashboard had died and is started again: {self.dashboard.run_url}")


@contextmanager
def open_view(folder: Path, *, host: str, prefix: str, screen: Screen, wanted: bool) -> Iterator[View]:
    """Starts the dashboard if it is `wanted`; when it cannot start, says why and yields a view without one."""
    dashboard: Dashboard | None = None
    if wanted:
        try:
            dashboard = Dashboard(folder, host=host, prefix=prefix)
            dashboard.start()
        except ClusterError as error:
            screen.note(f"no dashboard: {error}")
            dashboard = None
        else:
            screen.note(f"dashboard: {dashboard.run_url}   (from elsewhere: {dashboard.ssh_hint})")
    try:
        yield View(screen=screen, dashboard=dashboard)
    finally:
        if dashboard is not None:
            dashboard.stop()
