"""A clip that hangs: the process ends itself, so that the whole group ends and the next start continues from the records."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobs.log import log_event

_LOG = logging.getLogger(__name__)
HUNG_EXIT = 75


class HangWatch:
    """Ends this process with `HUNG_EXIT` when a clip takes longer than `limit_s`, or a batch of N clips N times as long.

    A thread that hangs in a kernel or a collective cannot be interrupted, so no error is raised in it. The clip's attempt
    mark stays: a clip that hangs repeatedly is quarantined, like a clip that crashes. `last_words` is called first, to save
    what can be saved; it must return within a bounded time.
    """

    def __init__(self, limit_s: float, *, last_words: Callable[[], object]) -> None:
        self._limit_s = limit_s
        self._last_words = last_words

    @contextmanager
    def over(self, clip_id: str | None, *, clips: int = 1) -> Iterator[None]:
        """Watches the work done inside, on one clip or on a batch. `clip_id` None: the encoding of all prompts."""
        timer = threading.Timer(self._limit_s * clips, self._end, [clip_id])
        timer.name, timer.daemon = "hang-watch", True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _end(self, clip_id: str | None) -> None:
        if clip_id is None:
            log_event(_LOG, "prompts_hung", level=logging.ERROR, limit_s=self._limit_s)
        else:
            log_event(_LOG, "clip_hung", level=logging.ERROR, clip=clip_id, limit_s=self._limit_s)
        faulthandler.dump_traceback(sys.stderr)
        try:
            self._last_words()
        finally:
            os._exit(HUNG_EXIT)
