"""A rank's log goes to the bucket when the job ends, and now and then while it runs, so that people can follow it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.log import SENT_EVERY_S, log_event, open_log
from jobs.rendering.context import JobContext
from jobs.store import layout
from jobs.store.bucket import BucketError

_LOG = logging.getLogger(__name__)
LOG_FILE = "job.log"
_LARGE_BYTES = 1 << 20
"""A log is put there whole, so a larger one is put there less often."""


@contextmanager
def kept_log(context: JobContext, *, every_s: float = SENT_EVERY_S) -> Iterator[None]:
    """Logs into a file that goes to the bucket every `every_s` seconds if it has grown, and at the end, whatever that is."""
    place = context.ranks.place
    file = context.scratch / LOG_FILE
    with open_log(file, run=context.settings.run_id, job=layout.job_name(context.shard), rank=place.rank):
        ended = threading.Event()
        sender = threading.Thread(target=_send, args=(context, file, ended, every_s), name="log", daemon=True)
        sender.start()
        try:
            yield
        except Exception:  # the job's top on this rank: the log in the bucket must say why the job ended
            _LOG.exception("job_broken")
            raise
        finally:
            ended.set()
            sender.join()
            keep_log(context)


def keep_log(context: JobContext) -> None:
    """Puts the log as it is into the bucket. A bucket that is away costs only the log."""
    place = context.ranks.place
    try:
        context.bucket.upload(context.scratch / LOG_FILE, layout.job_log(context.shard, place.name, place.rank))
    except BucketError as error:
        log_event(_LOG, "log_not_kept", level=logging.ERROR, error=str(error))


def _send(context: JobContext, file: Path, ended: threading.Event, every_s: float) -> None:
    """Puts the log there while the job runs. What fails now is tried again at the next time."""
    place, sent = context.ranks.place, 0
    path = layout.job_log(context.shard, place.name, place.rank)
    while not ended.wait(every_s * max(1.0, sent / _LARGE_BYTES)):
        data = file.read_bytes()
        if len(data) == sent:
            continue
        try:
            context.bucket.write(path, data)
        except BucketError:
            continue
        sent = len(data)
