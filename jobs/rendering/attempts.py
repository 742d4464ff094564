"""Attempt marks: they distinguish a clip that killed its group from a clip that never started.

A mark is written before a clip starts, and it stays. A mark with neither record nor failure means that the group died during
the clip. Encoding the prompts of a job has a mark of the same kind. A start that is interrupted from outside (preemption,
time limit, Ctrl-C) must not look like that, so it removes its open marks, even while the main thread is busy in a kernel or
a collective.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType

from jobs.log import log_event
from jobs.store import layout
from jobs.store.bucket import Bucket, BucketError
from jobs.store.history import WITHDRAWN, is_withdrawn

_LOG = logging.getLogger(__name__)
_END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)  # USR2: NCCL takes USR1
_LAST_WORDS_S = 20.0


class OpenAttempts:
    """The marks of clips that are being worked on in this process. Safe to use from several threads."""

    def __init__(self, bucket: Bucket, **context: object) -> None:
        self._bucket = bucket
        self._context = context
        self._lock = threading.Lock()
        self._open: set[str] = set()
        self._withdrawn: set[str] = set()

    def begin(self, key: str, attempt: int) -> int:
        """Writes a clip's mark and returns the attempt's number: `attempt`, or the next free one. Raises BucketError."""
        while True:
            if self._create(layout.attempt(key, attempt), attempt=attempt):
                return attempt
            attempt += 1

    def hold(self, path: str) -> bool:
        """Writes a mark for work on several clips, until `release`. False if an earlier start left it. Raises BucketError."""
        return self._create(path)

    def release(self, path: str) -> None:
        """Removes a mark of `hold`, when the work has ended. Raises BucketError."""
        self._close(path)
        self._bucket.remove(path)

    def _create(self, path: str, **facts: object) -> bool:
        mark = {
            **self._context,
            **facts,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started_at": datetime.now(UTC).isoformat(),
        }
        with self._lock:
            self._open.add(path)
        if self._bucket.create_json(path, mark):
            return True
        if self._is_withdrawn(path):
            self._bucket.write_json(path, mark)
            return True
        self._close(path)
        return False

    def _is_withdrawn(self, path: str) -> bool:
        try:
            return is_withdrawn(self._bucket.read(path))
        except FileNotFoundError:
            return False

    def end(self, key: str, attempt: int) -> None:
        """Closes an attempt whose record or failure is written; its mark stays."""
        self._close(layout.attempt(key, attempt))

    def _close(self, path: str) -> None:
        with self._lock:
            self._open.discard(path)

    def withdraw(self) -> list[str]:
        """Takes back the marks of unfinished clips, so that this start does not count; returns them.

        Each is written over with a mark that does not count, and then removed, so a store that lets nothing be removed does
        no harm. Raises BucketError, after all were tried, if one can be neither written over nor removed.
        """
        with self._lock:
            paths, self._open = sorted(self._open), set()
            self._withdrawn.update(paths)
        errors = [error for error in map(self._take_back, paths) if error]
        if errors:
            raise errors[0]
        return paths

    def take_back(self, key: str, attempt: int) -> None:
        """Takes back the mark of one attempt, whichever rank wrote it, so that it does not count. Raises BucketError."""
        path = layout.attempt(key, attempt)
        self._close(path)
        if error := self._take_back(path):
            raise error

    def _take_back(self, path: str) -> BucketError | None:
        written: BucketError | None = None
        try:
            self._bucket.write_json(path, WITHDRAWN)
        except BucketError as error:
            written = error
        try:
            self._bucket.remove(path)
        except BucketError as error:
            if written:
                return written
            log_event(_LOG, "mark_not_removed", level=logging.WARNING, path=path, error=repr(error))
        return None

    def is_withdrawn(self, key: str, attempt: int) -> bool:
        """Whether an interruption removed this attempt's mark."""
        with self._lock:
            return layout.attempt(key, attempt) in self._withdrawn


@contextmanager
def interruptible(on_signal: Callable[[], object]) -> Iterator[None]:
    """When a signal asks the process to end, calls `on_signal` at once, in a separate thread, then ends the main thread.

    Earlier handlers of SIGTERM, SIGINT and SIGUSR2 (such as our requeue) are called too, except that SIGTERM is never
    ignored. Outside of the main thread no handler can be set: there it only runs the body.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    watch = threading.Thread(target=_watch, args=(reader, on_signal), name="signal-watch", daemon=True)
    earlier = {signum: signal.getsignal(signum) for signum in _END_SIGNALS}
    ending = threading.Event()

    def end(signum: int, frame: FrameType | None) -> None:
        # A second signal often follows (USR2 asks for a requeue, which sends TERM; of a cancelled group, one rank sees the
        # other end): the first one decides, so that what it set off, the taking back of marks too, is done to its end.
        if ending.is_set():
            return
        ending.set()
        handler = earlier[signal.Signals(signum)]
        if signum != signal.SIGTERM and callable(handler):
            handler(signum, frame)
            ending.clear()
            return
        raise SystemExit(128 + signum)

    # The C handler writes to this pipe even while Python cannot run handlers, so the thread reads it at once.
    earlier_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watch.start()
    for signum in _END_SIGNALS:
        signal.signal(signum, end)
    try:
        yield
    finally:
        for signum, handler in earlier.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(earlier_fd)
        os.close(writer)
        watch.join(_LAST_WORDS_S)
        if not watch.is_alive():
            os.close(reader)


def _watch(reader: int, on_signal: Callable[[], object]) -> None:
    while signals := os.read(reader, 64):
        ends = [signum for signum in signals if signum in _END_SIGNALS]
        if not ends:
            continue
        log_event(_LOG, "interrupted", level=logging.WARNING, signal=signal.Signals(ends[0]).name)
        try:
            on_signal()
        except BucketError as error:
            log_event(_LOG, "interrupted_badly", level=logging.ERROR, error=repr(error))
