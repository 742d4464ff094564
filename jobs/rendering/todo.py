"""What a start of a job has to do. Sorts the clips: done, failed, killed their group too often, or still to render."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass

from jobs.log import log_event
from jobs.outcome import ClipOutcome, Failed, skipped
from jobs.rendering.clip_attempt import Attempt
from jobs.rendering.context import JobContext, write_failure
from jobs.store import layout
from jobs.store.history import ClipHistory, is_given_up
from manifests.clip import Clip
from manifests.read import read_clips

_LOG = logging.getLogger(__name__)


class GroupKilledError(Exception):
    """A clip's earlier attempts ended with neither record nor failure: the process died during the clip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Todo:
    """A sorted shard. `attempts`: still to be made, none of them begun. `ended`: outcomes from before this start.

    `put_off`: clips that failed and have an attempt left, which a start on another node makes.
    """

    order: tuple[Clip, ...]
    attempts: tuple[Attempt, ...]
    ended: tuple[ClipOutcome, ...]
    put_off: tuple[Clip, ...] = ()


def sort_shard(context: JobContext) -> Todo:
    """Reads the shard and the history of its clips. Writes the failure of clips that killed their group too often.

    Raises BucketError, also if there is no such shard.
    """
    clips = read_shard(context)
    histories = context.bucket.histories(clip.key for clip in clips)
    attempts: list[Attempt] = []
    ended: list[ClipOutcome] = []
    put_off: list[Clip] = []
    for clip in clips:
        history = histories[clip.key]
        outcome = _ended(clip, history, context)
        if outcome is not None:
            ended.append(outcome)
        elif history.failures and not context.again:
            put_off.append(clip)
        else:
            attempts.append(Attempt(clip=clip, number=history.next_attempt))
    # Clips that failed or killed their group come last: if they do it again, the others are already rendered.
    attempts.sort(key=lambda attempt: attempt.number > 1)
    return Todo(order=tuple(clips), attempts=tuple(attempts), ended=tuple(ended), put_off=tuple(put_off))


def read_shard(context: JobContext) -> list[Clip]:
    """Returns the shard's clips. Raises BucketError, ManifestError."""
    return read_clips(io.BytesIO(context.bucket.read_present(layout.shard(context.shard))))


def _ended(clip: Clip, history: ClipHistory, context: JobContext) -> ClipOutcome | None:
    if history.recorded:
        return skipped(clip)
    max_attempts = context.settings.render.max_attempts
    if is_given_up(history.failures, max_attempts):
        return _earlier_failure(clip, history.failures[-1], context)
    if history.is_given_up(max_attempts):
        attempt = Attempt(clip=clip, number=history.next_attempt - 1)
        attempt.stages.current = "quarantine"
        log_event(_LOG, "clip_quarantined", level=logging.ERROR, clip=clip.clip_id, killed=history.killed)
        return write_failure(attempt, context, GroupKilledError(history.killed_text), number=history.next_attempt)
    return None


def _earlier_failure(clip: Clip, attempt: int, context: JobContext) -> Failed:
    failure = context.bucket.read_json(layout.failure(clip.key, attempt))
    return Failed(
        clip_id=clip.clip_id,
        digest=clip.digest,
        stage=str(failure.get("stage", "")),
        error=str(failure.get("error", "")),
        message=str(failure.get("message", "")),
    )
