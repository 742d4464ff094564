"""What lies beside a video for people who look at a run: a small picture of it, and of a sample its video without reuse.

Nothing depends on these files. A clip is as good without them, so an error costs only the file. A sample is a video that
a model made, so it is signed as clips are, or not left at all.
"""

from __future__ import annotations

import hashlib
import logging
import time

from jobs.log import log_event
from jobs.media.encode import EncodeError, encode
from jobs.media.picture import poster
from jobs.provenance.errors import SigningError
from jobs.rendering.clip_attempt import Attempt
from jobs.rendering.context import JobContext
from jobs.rendering.said import said_of
from jobs.store import layout
from jobs.store.bucket import BucketError

_LOG = logging.getLogger(__name__)


def leave_beside(attempt: Attempt, context: JobContext, sha256: str) -> dict[str, str]:
    """Uploads what lies beside a clip's video, and returns the paths by name as they stand in its record's `video`.

    `sha256`: of the video.
    """
    found: dict[str, str] = {}
    path = layout.poster(attempt.clip.key, sha256)
    try:
        context.bucket.write(path, poster(attempt.coming.fetch()))
        found["poster"] = path
        if attempt.without_reuse is not None:
            found["without_reuse"] = _leave_sample(attempt, context)
    except (BucketError, EncodeError, SigningError, OSError, ValueError) as error:
        log_event(_LOG, "beside_missing", level=logging.WARNING, clip=attempt.clip.clip_id, error=str(error))
    return found


def _leave_sample(attempt: Attempt, context: JobContext) -> str:
    """Encodes and uploads a sample without reuse; returns its path. Its time is not the clip's own."""
    clip, start = attempt.clip, time.monotonic()
    assert attempt.without_reuse is not None, "the caller looks"
    file = context.scratch / f"{clip.digest}.without.mp4"
    tags = {
        "clip_id": clip.clip_id, "seed": clip.seed, "model": clip.model, "run_id": context.settings.run_id,
        "reuse": "none",
    }  # fmt: skip
    try:
        frames, sound = attempt.without_reuse.fetch(), attempt.without_reuse.sound
        encode(frames, file, fps=clip.fps, crf=context.settings.render.crf, tags=tags, sound=sound)
        if context.signer is not None:
            context.signer.sign(file, said_of(attempt, context, without_reuse=True))
        path = layout.sample(clip.key, hashlib.sha256(file.read_bytes()).hexdigest())
        context.bucket.upload(file, path)
    finally:
        file.unlink(missing_ok=True)
        attempt.held_s += time.monotonic() - start
        attempt.without_reuse = None
    return path
