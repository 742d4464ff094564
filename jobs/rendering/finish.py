"""From frames to the record: encode, check, upload, record. Runs in threads while the next clips are denoised."""

from __future__ import annotations

import hashlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

from jobs.log import log_event
from jobs.media.encode import Video, check, encode
from jobs.outcome import ClipOutcome, Rendered, Skipped, skipped
from jobs.quality.alarm_counts import ALARMS
from jobs.quality.alarms import PixelStatistics, alarms_of, pixel_statistics
from jobs.rendering.beside import leave_beside
from jobs.rendering.clip_attempt import Attempt
from jobs.rendering.context import JobContext, contain
from jobs.rendering.record import ClipRecord, clip_record
from jobs.rendering.said import said_of
from jobs.store import layout
from jobs.store.bucket import Bucket, BucketError, DamagedError
from manifests.clip import Clip

_LOG = logging.getLogger(__name__)
_POLL_S = 0.2
_WAITING = 1
_AT_ONCE = 2
"""A clip of 51 frames of 480p takes 2.2 s of ffmpeg and of comparing: two fast GPUs render the next one sooner."""


class Finisher:
    """Turns rendered clips into videos and records, two clips or batches at a time; one more may wait.

    `tell(attempt, outcome)` is called for every clip, in a thread. An error that is not the clip's own (such as a lost
    bucket) ends the threads, and the next `submit` or `close` raises it. `watching(attempt)` is entered around each clip: it
    ends a process whose finisher hangs.
    """

    def __init__(
        self,
        context: JobContext,
        tell: Callable[[Attempt, ClipOutcome], None],
        *,
        watching: Callable[[Attempt], AbstractContextManager[None]] = lambda _: nullcontext(),
    ) -> None:
        self._context = context
        self._tell = tell
        self._watching = watching
        self._queue: queue.Queue[Sequence[Attempt] | None] = queue.Queue(_WAITING)
        self._error: BaseException | None = None
        names = [f"finisher-{number}" for number in range(_AT_ONCE)]
        self._threads = [threading.Thread(target=self._run, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    def submit(self, clips: Sequence[Attempt]) -> None:
        """Hands over a rendered clip or batch; waits while three are unfinished. Raises the error that ended a thread."""
        self._put(clips, math.inf)

    def wait(self) -> None:
        """Waits until everything handed over is finished. Raises the error that ended a thread."""
        while self._at_work and self._queue.unfinished_tasks:
            time.sleep(_POLL_S / 4)
        self._raise()

    def close(self) -> None:
        """Waits until all clips are recorded, then ends the threads. Raises the error that ended one."""
        self._put(None, math.inf)
        for thread in self._threads:
            thread.join()
        self._raise()

    def abandon(self, timeout_s: float) -> BaseException | None:
        """Waits at most `timeout_s` for clips to be recorded, when a job fails. Returns the error that ended a thread."""
        end = time.monotonic() + timeout_s
        self._offer(None, end)
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return self._error

    @property
    def _at_work(self) -> bool:
        return self._error is None and any(thread.is_alive() for thread in self._threads)

    def _put(self, item: Sequence[Attempt] | None, end: float) -> None:
        if not self._offer(item, end):
            self._raise()

    def _offer(self, item: Sequence[Attempt] | None, end: float) -> bool:
        while self._at_work and time.monotonic() < end:
            try:
                self._queue.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while (item := self._next()) is not None:
                for attempt in item:
                    work = partial(finish_clip, attempt, self._context)
                    with self._watching(attempt):
                        self._tell(attempt, contain(attempt, self._context, work, collective=False))
                self._queue.task_done()
        except BaseException as error:  # the thread's top: the main thread raises it at its next call
            self._error = self._error or error

    def _next(self) -> Sequence[Attempt] | None:
        """Returns what is to be finished next; None when nothing more will come, or the other thread has failed."""
        while self._error is None:
            try:
                item = self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if item is None:
                self._queue.put(None)  # for the other thread
            return item
        return None


def finish_clip(attempt: Attempt, context: JobContext) -> Rendered | Skipped:
    """Makes a rendered clip's video, checks it, uploads it, writes the record, then the video's plain name.

    The video goes under a name that its bytes decide, so a late upload of another attempt, or of a killed sender, never
    changes what a record names. Two submits at the same time may render a clip twice: the first record stays. A manifest is
    put in before the check, so the bytes that are checked, named, uploaded and recorded are the same. Raises EncodeError,
    SigningError, BucketError.
    """
    clip, stages, bucket = attempt.clip, attempt.stages, context.bucket
    path = context.scratch / f"{clip.digest}.mp4"
    try:
        video, signed = _encode(attempt, context, path)
        pixels = _look_at(attempt)
        if bucket.is_recorded(clip.key):
            return _leave_to_other(attempt, context)
        with stages.time("upload"):
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            bucket.upload(path, layout.render(clip.key, sha256))
            beside = leave_beside(attempt, context, sha256)
        stages.current = "record"
        record = clip_record(
            attempt, context, video=video, sha256=sha256, pixels=pixels, beside=beside, signed=signed
        )  # fmt: skip
        if not write_record(bucket, clip, record):
            return _leave_to_other(attempt, context)
        _write_plain_name(attempt, context, path, layout.render(clip.key, sha256))
    finally:
        path.unlink(missing_ok=True)
    context.attempts.end(clip.key, attempt.number)
    log_event(
        _LOG, "clip_rendered", clip=clip.clip_id, attempt=attempt.number, elapsed_s=attempt.elapsed_s,
        denoise_s=stages.seconds.get("denoise"), psnr_db=video.psnr_db, size_bytes=video.size_bytes,
    )  # fmt: skip
    return Rendered(clip_id=clip.clip_id, digest=clip.digest, elapsed_s=attempt.elapsed_s)


def write_record(bucket: Bucket, clip: Clip, record: ClipRecord) -> bool:
    """Writes the record of a video that was just uploaded; returns False if another job's record was first and stays.

    A record that is damaged does not stay: ours replaces it. Raises BucketError.
    """
    path = layout.record(clip.key)
    if bucket.create_json(path, record):
        return True
    try:
        bucket.record(clip.key)
    except FileNotFoundError:  # put aside in this moment, as damaged
        return bucket.create_json(path, record)
    except DamagedError as error:
        log_event(_LOG, "record_replaced", level=logging.WARNING, clip=clip.clip_id, error=str(error))
        bucket.write_json(path, record)
        return True
    return False


def _write_plain_name(attempt: Attempt, context: JobContext, path: Path, rendered: str) -> None:
    """Writes `videos/<clip_id>.mp4`. The clip is done without it: a bucket that is away now costs only this name."""
    if not context.settings.render.plain_videos:
        return
    name, bucket = layout.video(attempt.clip.clip_id), context.bucket
    try:
        if bucket.is_local:
            bucket.copy(rendered, name)
        else:
            bucket.upload(path, name)
    except BucketError as error:
        log_event(_LOG, "plain_name_missing", level=logging.WARNING, clip=attempt.clip.clip_id, error=str(error))


def _leave_to_other(attempt: Attempt, context: JobContext) -> Skipped:
    context.attempts.end(attempt.clip.key, attempt.number)
    log_event(_LOG, "clip_recorded_by_other", clip=attempt.clip.clip_id, attempt=attempt.number)
    return skipped(attempt.clip)


def _encode(attempt: Attempt, context: JobContext, path: Path) -> tuple[Video, dict[str, object] | None]:
    """Makes the video, signs it if the run does, and checks it. Returns it, and what is told of its manifest."""
    clip, stages = attempt.clip, attempt.stages
    stages.current = "decode"
    frames, sound = attempt.coming.fetch(), attempt.coming.sound
    stages.seconds["decode"] = attempt.coming.decode_s
    tags = {"clip_id": clip.clip_id, "seed": clip.seed, "model": clip.model, "run_id": context.settings.run_id}
    with stages.time("encode"):
        encode(frames, path, fps=clip.fps, crf=context.settings.render.crf, tags=tags, sound=sound)
    signed = None
    if context.signer is not None:
        with stages.time("sign"):
            signed = context.signer.sign(path, said_of(attempt, context))
    with stages.time("check"):
        return check(frames, path, fps=clip.fps, crf=context.settings.render.crf, sound=sound), signed


def _look_at(attempt: Attempt) -> PixelStatistics:
    """Returns what the frames say of themselves; the log says which alarms they give."""
    with attempt.stages.time("check"):
        pixels = pixel_statistics(attempt.coming.fetch())
    for alarm in alarms_of(pixels):
        log_event(
            _LOG, "clip_alarm", level=logging.WARNING, clip=attempt.clip.clip_id, alarm=alarm, why=ALARMS[alarm]
        )  # fmt: skip
    return pixels
