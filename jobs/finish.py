"""From frames to the record, in a thread beside the next clip's denoising: encode, check, upload, record."""

from __future__ import annotations

import hashlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from jobs import layout
from jobs.clip_work import Begun, ClipFrames
from jobs.context import JobContext, contain
from jobs.encode import Video, check, encode
from jobs.log import log_event
from jobs.outcome import Failed, Rendered
from jobs.record import clip_record

_LOG = logging.getLogger(__name__)
_POLL_S = 0.2
_WAITING_CLIPS = 1


class Finisher:
    """Takes frames and leaves videos and records, one clip at a time; a second clip may wait.

    `tell(begun, outcome)` hears of every clip, in the thread. An error that is not the clip's own (the bucket is gone)
    ends the thread and is raised by the next `submit` or `close`.
    """

    def __init__(self, context: JobContext, tell: Callable[[Begun, Rendered | Failed], None]) -> None:
        self._context = context
        self._tell = tell
        self._queue: queue.Queue[tuple[Begun, ClipFrames] | None] = queue.Queue(_WAITING_CLIPS)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="finisher", daemon=True)
        self._thread.start()

    def submit(self, begun: Begun, rendered: ClipFrames) -> None:
        """Hands a clip over; waits while two clips are in hand. Raises what ended the thread."""
        self._put((begun, rendered), math.inf)

    def wait(self) -> None:
        """Waits until nothing is in hand. Raises what ended the thread."""
        while self._thread.is_alive() and self._queue.unfinished_tasks:
            time.sleep(_POLL_S / 4)
        self._raise()

    def close(self, timeout_s: float | None = None) -> None:
        """Waits until all clips are recorded, or for `timeout_s`. Raises what ended the thread."""
        end = math.inf if timeout_s is None else time.monotonic() + timeout_s
        self._put(None, end)
        self._thread.join(None if timeout_s is None else max(0.0, end - time.monotonic()))
        self._raise()

    def _put(self, item: tuple[Begun, ClipFrames] | None, end: float) -> None:
        while self._thread.is_alive() and time.monotonic() < end:
            try:
                return self._queue.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
        return self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while (item := self._queue.get()) is not None:
                begun, rendered = item
                work = partial(finish_clip, begun, rendered, self._context)
                self._tell(begun, contain(begun, self._context, work, collective=False))
                self._queue.task_done()
        except BaseException as error:
            self._error = error


def finish_clip(begun: Begun, rendered: ClipFrames, context: JobContext) -> Rendered:
    """Makes a clip's video, checks it, uploads it, then writes the record. Raises EncodeError, BucketError."""
    clip, stages = begun.clip, begun.stages
    path = context.scratch / f"{clip.digest}.mp4"
    try:
        video = _encode(begun, rendered, context, path)
        with stages.time("upload"):
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            context.bucket.upload(path, layout.video(clip.clip_id))
    finally:
        path.unlink(missing_ok=True)
    stages.current = "record"
    record = clip_record(begun, rendered, context, video=video, sha256=sha256)
    context.bucket.write_json(layout.record(clip.key), record)
    context.attempts.end(clip.key, begun.attempt)
    log_event(
        _LOG, "clip_rendered", clip=clip.clip_id, attempt=begun.attempt, elapsed_s=begun.elapsed_s,
        denoise_s=stages.seconds.get("denoise"), psnr_db=video.psnr_db, size_bytes=video.size_bytes,
    )  # fmt: skip
    return Rendered(clip_id=clip.clip_id, digest=clip.digest, elapsed_s=begun.elapsed_s)


def _encode(begun: Begun, rendered: ClipFrames, context: JobContext, path: Path) -> Video:
    clip, frames = begun.clip, rendered.frames_THWC
    assert frames is not None, "only the clip's root finishes clips"
    tags = {"clip_id": clip.clip_id, "seed": clip.seed, "model": clip.model, "run_id": context.settings.run_id}
    with begun.stages.time("encode"):
        encode(frames, path, fps=clip.fps, crf=context.settings.crf, tags=tags)
    with begun.stages.time("check"):
        return check(frames, path, fps=clip.fps, crf=context.settings.crf)
