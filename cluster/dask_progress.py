"""Shows a job's clips on the Dask dashboard: one worker per job, one task per clip, running while the clip is rendered.

The job never waits for Dask. Everything of Dask's lives on a thread with its own event loop, which reconnects to a
restarted scheduler, and which gives up with a single log line.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cluster.clip_board import ClipBoard
from cluster.scheduler_file import read_place

_LOG = logging.getLogger(__name__)
_RETRY_S, _LONGEST_RETRY_S = 2.0, 60.0
_CONNECT_S = 10.0
_EXIT_S = 5.0
MOST_KEPT_TASKS = 20
_KEPT_IN_ALL = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DaskProgress:
    """Shows a job's clips on the Dask scheduler named in `scheduler_file`. Picklable; holds a path and no key.

    The path is text: a pickled one names a class that Python 3.13 has elsewhere, and a job's Python may be another one.
    `kept_tasks`: how many clips that have ended a job goes on showing; few, where there are many jobs.
    """

    scheduler_file: str
    kept_tasks: int = MOST_KEPT_TASKS

    def open(self, worker_name: str, clip_ids: Sequence[str]) -> OpenDaskProgress:
        """Begins to connect under this name, in the background, and returns at once."""
        return OpenDaskProgress(self, worker_name=worker_name, board=ClipBoard(clip_ids))


def kept_tasks(num_jobs: int) -> int:
    """Returns how many ended clips each of so many jobs at once may go on showing, so that the scheduler stays light."""
    return max(1, min(MOST_KEPT_TASKS, _KEPT_IN_ALL // max(1, num_jobs)))


class OpenDaskProgress:
    """A job's presence on the dashboard."""

    def __init__(self, progress: DaskProgress, *, worker_name: str, board: ClipBoard) -> None:
        self._scheduler_file = Path(progress.scheduler_file)
        self._kept_tasks = progress.kept_tasks
        self._worker_name = worker_name
        self._board = board
        self._absence_told = False
        self._thread = threading.Thread(target=self._run, name="dask-progress", daemon=True)
        self._thread.start()

    def started(self, clip_id: str) -> None:
        """Tells that the clip's denoising begins."""
        self._board.start(clip_id)

    def finished(self, clip_id: str, outcome: str, elapsed_s: float) -> None:
        """Tells how the clip ended; its task ends with this outcome."""
        self._board.finish(clip_id, outcome)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._board.close()
        self._thread.join(_EXIT_S)

    def _run(self) -> None:
        retry_s = _RETRY_S
        # One loop for all stays: what Dask has left running in the last one goes on and ends by itself.
        with asyncio.Runner() as runner:
            runner.get_loop().set_exception_handler(_log_quietly)
            while not self._board.closed:
                try:
                    runner.run(self._stay_once())
                    retry_s = _RETRY_S
                    self._tell_absence("it went away")
                except Exception as error:  # the thread's top: the view must never harm the job, whatever Dask raises
                    self._tell_absence(str(error) or repr(error))
                # Jobs of one run must not all reconnect at the same moment, nor overload a busy scheduler.
                runner.run(self._board.wait_closed(retry_s * random.uniform(0.75, 1.25)))
                retry_s = min(1.5 * retry_s, _LONGEST_RETRY_S)

    async def _stay_once(self) -> None:
        place = read_place(self._scheduler_file)
        if place is None:
            raise FileNotFoundError(f"no file {self._scheduler_file}")
        own_host = await _own_host(*place.host_and_port)
        # Only now: this import takes a second of the interpreter, and a job without a scheduler never needs it.
        from cluster.dask_session import run_session

        await run_session(
            place,
            own_host=own_host,
            worker_name=self._worker_name,
            board=self._board,
            kept_tasks=self._kept_tasks,
            joined=self._tell_joined,
        )

    def _tell_joined(self) -> None:
        _LOG.info("%s: shown on the Dask dashboard", self._worker_name)
        self._absence_told = False

    def _tell_absence(self, reason: object) -> None:
        if not self._absence_told and not self._board.closed:
            _LOG.warning("%s: no Dask scheduler (%s); the job goes on without the dashboard", self._worker_name, reason)
        self._absence_told = True


async def _own_host(host: str, port: int) -> str:
    """Connects once, to learn whether the scheduler is there, and at which address it sees this machine."""
    _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), _CONNECT_S)
    own_host = writer.get_extra_info("sockname")[0]
    writer.close()
    return str(own_host)


def _log_quietly(_loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    _LOG.debug("Dask: %s", context.get("message"))
