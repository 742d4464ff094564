"""Work that hangs: the process ends itself, so that the whole group ends and the next start continues from the records."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from jobs.log import log_event

_LOG = logging.getLogger(__name__)
HUNG_EXIT = 75
_OVER_MEASURED = 4.0
_MOST_LIMITS = 4.0
"""No batch gets more than so many times the limit of a clip."""


class HangWatch:
    """Ends this process with `HUNG_EXIT` when something takes longer than its limit: `limit_s` for a clip or a stage.

    A thread that hangs in a kernel or a collective cannot be interrupted, so no error is raised in it. A clip's attempt
    mark stays: a clip that hangs repeatedly is quarantined, like a clip that crashes. `last_words` is called first, to save
    what can be saved; it must return within a bounded time.
    """

    def __init__(self, limit_s: float, *, last_words: Callable[[], object]) -> None:
        self._limit_s = limit_s
        self._last_words = last_words
        self._ending = threading.Lock()

    @contextmanager
    def over(self, clip_id: str | None, *, clips: int = 1, expected_s: float = 0.0) -> Iterator[None]:
        """Watches the work done inside, on one clip or on a batch. `clip_id` None: the encoding of all prompts.

        `expected_s`: what the batch is expected to take, from measured times; 0 if nothing is measured.
        """
        limit_s = batch_limit_s(self._limit_s, clips=clips, expected_s=expected_s)
        if clip_id is None:
            tell = partial(_tell, "prompts_hung", limit_s=limit_s)
        else:
            tell = partial(_tell, "clip_hung", clip=clip_id, limit_s=limit_s)
        with self._timed(limit_s, tell):
            yield

    @contextmanager
    def over_stage(self, stage: str, *, clip_id: str | None = None, extra_s: float = 0.0) -> Iterator[None]:
        """Watches other work of a job, in any thread: loading, a clip's last stages, the report.

        `extra_s`: what its own time limits (of uploads, of ffmpeg) add up to. They come first, and make an error of it.
        """
        limit_s = self._limit_s + extra_s
        with self._timed(limit_s, partial(_tell, "stage_hung", stage=stage, clip=clip_id, limit_s=limit_s)):
            yield

    @contextmanager
    def _timed(self, limit_s: float, tell: Callable[[], None]) -> Iterator[None]:
        timer = threading.Timer(limit_s, self._end, [tell])
        timer.name, timer.daemon = "hang-watch", True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _end(self, tell: Callable[[], None]) -> None:
        with self._ending:  # what else hangs meanwhile ends with it
            tell()
            faulthandler.dump_traceback(sys.stderr)
            try:
                self._last_words()
            finally:
                os._exit(HUNG_EXIT)


def batch_limit_s(limit_s: float, *, clips: int, expected_s: float) -> float:
    """Returns the limit of a batch: four times what was measured for as much work, and at least that of a clip alone.

    Where nothing is measured, each further clip adds a quarter of `limit_s`, which is at least four times what a clip is
    planned to take. A batch never gets more than four times `limit_s`.
    """
    asked_s = _OVER_MEASURED * expected_s if expected_s else limit_s * (1 + (clips - 1) / 4)
    return limit_s if clips == 1 else min(max(limit_s, asked_s), _MOST_LIMITS * limit_s)


def _tell(event: str, **fields: object) -> None:
    log_event(_LOG, event, level=logging.ERROR, **fields)
