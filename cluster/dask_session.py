"""One stay of a job on one Dask scheduler: a worker, a client, and a task for every clip that is due."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import warnings
from collections.abc import Awaitable, Callable
from concurrent.futures import Future as ThreadFuture
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, TypeVar

import dask
from distributed import Client, Future, Worker

from cluster.clip_board import ClipBoard
from cluster.scheduler_file import SchedulerPlace, security

_T = TypeVar("_T")
_LOG = logging.getLogger(__name__)
_AHEAD = 2
_AT_ONCE = 16  # one clip per replica of the job, their uploads beside the next clips, and those ahead
_JOIN_S = 30.0  # the scheduler of a thousand jobs that start together has its hands full
_CLOSE_S = 1.0
_ENDING_S = 0.5

_LIGHT = {
    # The sampling profiler would take the GIL a hundred times a second from the thread that renders.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.admin.system-monitor.disk": False,
    # So would looking at the machine twice a second, and at the event loop's health fifty times.
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.admin.tick.interval": "1s",
    "distributed.comm.timeouts.connect": f"{_JOIN_S}s",
    "distributed.comm.retry.count": 0,
    # Clients ask what the scheduler is like every two seconds until it tells them how rarely they may.
    "distributed.client.scheduler-info-interval": "60s",
}


async def run_session(
    place: SchedulerPlace,
    *,
    own_host: str,
    worker_name: str,
    board: ClipBoard,
    kept_tasks: int,
    joined: Callable[[], None],
) -> None:
    """Joins the scheduler, calls `joined`, and returns when the scheduler or the job has gone.

    `own_host`: this machine's address as the scheduler sees it. `kept_tasks`: how many clips that have ended it goes on
    showing. Raises OSError or TimeoutError if there is no scheduler.
    """
    _silence_distributed()
    # A thousand jobs that start together take longer than a second to make a folder; a job's log need not say so.
    warnings.filterwarnings("ignore", "Creating scratch directories", UserWarning)
    keys = security(place.folder)
    turns = _ClipExecutor(board)
    with dask.config.set(_LIGHT):
        worker = Worker(
            place.address,
            name=worker_name,
            nthreads=_AT_ONCE,
            memory_limit=0,  # with a limit, Dask pauses a worker whose process holds a large model, for ever
            executor=turns,
            security=keys,
            protocol="tls://",
            host=own_host,
            dashboard_address="127.0.0.1:0",
            local_directory=tempfile.gettempdir(),  # Dask removes there what its workers that were killed have left
            death_timeout=_JOIN_S,
        )
        client: Client | None = None
        try:
            await worker
            # Only now: it connects at once, and what knocks in vain again and again wears down a scheduler that is busy.
            client = Client(place.address, asynchronous=True, security=keys, timeout=_JOIN_S, set_as_default=False)
            await client
            joined()
            await _mirror_clips(client, worker=worker, board=board, kept_tasks=kept_tasks)
        finally:
            # The client first: it takes back the tasks of clips that never ended, before their thread is let go; and left
            # without a scheduler it complains for half a minute.
            if client is not None:
                await _bounded(client.close())
            turns.shutdown()
            await _bounded(worker.close(timeout=_CLOSE_S, executor_wait=False, nanny=False))


def _silence_distributed() -> None:
    # Dask prints to stderr at import and afterwards; what matters of it is one line of ours.
    for name in ("distributed", "distributed.client", "distributed.gc", "bokeh", "tornado", "tornado.application"):
        logger = logging.getLogger(name)
        logger.propagate = False
        for handler in [each for each in logger.handlers if type(each) is logging.StreamHandler]:
            logger.removeHandler(handler)
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())


async def _bounded(closing: Awaitable[object]) -> None:
    # Waited for, not awaited: what Dask raises while it closes concerns nobody, the job is leaving it.
    task = asyncio.ensure_future(closing)
    await asyncio.wait([task], timeout=_CLOSE_S)
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
    elif not task.cancelled() and (error := task.exception()):
        _LOG.debug("closing: %r", error)


async def _mirror_clips(client: Client, *, worker: Worker, board: ClipBoard, kept_tasks: int) -> None:
    gone = asyncio.ensure_future(worker.finished())
    changed = board.listen()
    submitted = {clip_id for clip_id in board.due(0) if board.outcome(clip_id)}
    futures: dict[str, Future] = {}
    try:
        while not gone.done() and not board.closed:
            changed.clear()
            for clip_id in board.due(_AHEAD):
                if clip_id not in submitted:
                    submitted.add(clip_id)
                    futures[clip_id] = client.submit(
                        mirror,
                        clip_id,
                        key=("render", clip_id),
                        workers=[worker.address],
                        priority=-len(submitted),
                        pure=False,
                    )
            _release_oldest(futures, kept_tasks)
            # Tasks of clips that have just ended are released when Dask has ended them too, even if no clip follows.
            ending = any(board.outcome(clip_id) and not future.done() for clip_id, future in futures.items())
            waiting = asyncio.ensure_future(changed.wait())
            await asyncio.wait(
                [gone, waiting], timeout=_ENDING_S if ending else None, return_when=asyncio.FIRST_COMPLETED
            )
            waiting.cancel()
        if not gone.done():
            await _wait_done([future for clip_id, future in futures.items() if board.outcome(clip_id)])
    finally:
        board.unlisten()
        gone.cancel()


def _release_oldest(futures: dict[str, Future], kept_tasks: int) -> None:
    # A finished task costs the scheduler 3 KB for as long as its future lives: a few per job make the progress bar.
    done = [clip_id for clip_id, future in futures.items() if future.done()]
    for clip_id in done[: max(0, len(done) - kept_tasks)]:
        futures.pop(clip_id).release()


async def _wait_done(futures: list[Future]) -> None:
    deadline = asyncio.get_running_loop().time() + _CLOSE_S
    while asyncio.get_running_loop().time() < deadline and not all(future.done() for future in futures):
        await asyncio.sleep(0.02)


def mirror(clip_id: str) -> str:
    """The body of a clip's task: lasts until the clip has ended and returns how; "left" if job or scheduler ended before."""
    return _EXECUTOR.get().wait_outcome(clip_id)


class _ClipExecutor(ThreadPoolExecutor):
    """Begins a clip's task when the clip begins, so that the dashboard's bars are as long as the clips took.

    Dask starts a task's bar when the executor calls it, so waiting inside the task would be too late.
    """

    def __init__(self, board: ClipBoard) -> None:
        super().__init__(_AT_ONCE, thread_name_prefix="dask-clip")
        self._board = board
        self._abandoned = False

    def submit(self, run: Callable[..., _T], /, *args: Any, **kwargs: Any) -> ThreadFuture[_T]:
        """Queues a task of Dask's, whose first argument gives its key."""
        return super().submit(self._in_turn, run, *args, **kwargs)

    def _in_turn(self, run: Callable[..., _T], /, *args: Any, **kwargs: Any) -> _T:
        _, clip_id = args[0].key
        self._board.wait_until(lambda: self._abandoned or self._board.has_begun(clip_id))
        _EXECUTOR.set(self)
        return run(*args, **kwargs)

    def wait_outcome(self, clip_id: str) -> str:
        """Blocks until the clip has ended."""
        self._board.wait_until(lambda: self._abandoned or self._board.outcome(clip_id) is not None)
        return self._board.outcome(clip_id) or "left"

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = True) -> None:
        """Ends the threads. Never waits for a clip: Dask must not end or delay its rendering."""
        self._abandoned = True
        self._board.poke()
        super().shutdown(wait=False, cancel_futures=True)


# Of each thread of an executor: the executor. How a task, which Dask pickles, finds back to its job.
_EXECUTOR: ContextVar[_ClipExecutor] = ContextVar("_EXECUTOR")
