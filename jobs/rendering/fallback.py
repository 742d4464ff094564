"""What a job falls back on, and says so, where memory is out or a loop cannot be recorded, instead of a failed clip.

Recorded loops go first, then kept outputs; they also go where one could not be recorded for any other reason, and where a
clip cannot be decoded beside them. A rank that renders a clip alone frees them and renders it again. Ranks that share a
clip cannot agree in the middle of a pass: the others may already wait in a collective for the one that has no more memory.
So that one leaves a note in the bucket and the group ends, as after any error of one rank; the attempt does not count, and
the next start begins there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from jobs.log import log_event
from jobs.rendering.batch_work import render_batch
from jobs.rendering.clip_attempt import Attempt
from jobs.rendering.clip_work import NO_LOOPS, OUT_OF_MEMORY, render_clip
from jobs.rendering.context import GroupLostError, JobContext
from jobs.rendering.group import is_lost_peer
from jobs.rendering.keep_ways import kind_key
from jobs.rendering.loaded_family import LoadedFamily
from jobs.rendering.references import ClipReferences
from jobs.store import layout
from manifests.clip import Clip
from pab.model import NotFiniteError

_LOG = logging.getLogger(__name__)
_RECORDED_NONE = 0
"""The level of the note that clips are rendered without recorded loops: no way down is taken for it."""
_NOT_RECORDED = "loop_not_recorded"


def render_in_memory(
    loaded: LoadedFamily, attempt: Attempt, *, context: JobContext, references: ClipReferences | None
) -> None:
    """Renders one clip (`render_clip`), with less kept if the device has no more memory. Collective over its ranks.

    Raises torch.OutOfMemoryError if nothing is left to take away, GroupLostError if other ranks share the clip, and what has
    nothing to do with memory or recording.
    """
    settings, group = context.settings, context.ranks.node
    while True:
        try:
            render_clip(loaded, attempt, settings=settings, group=group, references=references)
            return
        except RuntimeError as error:
            stage = attempt.stages.current
            if stage not in ("denoise", "decode"):
                raise
            full = isinstance(error, torch.OutOfMemoryError)
            # A rank that decodes alone has let its loops go already.
            if (event := _end_of_recording(loaded, error)) is not None:
                _tell(event, [attempt], context, error, NO_LOOPS, level=_RECORDED_NONE)
            elif full and stage == "denoise" and loaded.keep_less(attempt.clip, settings):
                level = loaded.levels[kind_key(attempt.clip)]
                _tell(OUT_OF_MEMORY, [attempt], context, error, str(loaded.way(attempt.clip, settings)), level=level)
            else:
                raise
        # Outside of `except`, so that the traceback no longer holds the clip's tensors.
        loaded.let_go()


def render_batch_in_memory(
    loaded: LoadedFamily, attempts: Sequence[Attempt], *, context: JobContext
) -> list[NotFiniteError | None]:
    """Renders a batch (`render_batch`), and again if it failed beside recorded loops, which then go. Collective.

    Raises GroupLostError if other ranks share the clips. What fails without recorded loops is raised: the clips are then
    rendered one by one.
    """
    while True:
        try:
            return render_batch(loaded, attempts, settings=context.settings, group=context.ranks.node)
        except RuntimeError as error:
            event = _end_of_recording(loaded, error)
            if event is None:
                raise
            _tell(event, attempts, context, error, NO_LOOPS, level=_RECORDED_NONE)
        loaded.let_go()


def _end_of_recording(loaded: LoadedFamily, error: RuntimeError) -> str | None:
    """Ends recording if an error may come from it; returns the event, or None if it has nothing to do with it."""
    # torch's error of memory is a RuntimeError too, as all of CUDA's and NCCL's are.
    full = isinstance(error, torch.OutOfMemoryError)
    recording = loaded.recorder is not None and loaded.recorder.is_recording and not is_lost_peer(error)
    if not (full or recording) or not loaded.record_no_more():
        return None
    return OUT_OF_MEMORY if full else _NOT_RECORDED


def _tell(
    event: str, attempts: Sequence[Attempt], context: JobContext, error: RuntimeError, instead: str, *, level: int
) -> None:
    """Logs what is done instead. Where ranks share the clips, leaves a note for the next start and raises GroupLostError."""
    first, ids = attempts[0].clip, ", ".join(each.clip.clip_id for each in attempts)
    log_event(_LOG, event, level=logging.WARNING, clip=ids, error=str(error), next=instead)
    if not context.ranks.shares_clips:
        return
    note = {"clip_id": ids, "way": instead, "error": str(error), "job": context.facts()}
    context.bucket.create_json(layout.less_memory(context.shard, first.model, kind_key(first), level), note)
    for each in attempts:
        context.attempts.take_back(each.clip.key, each.number)
    many = len(attempts) > 1
    raise GroupLostError(
        f"{'clips' if many else 'clip'} {ids}: {event.replace('_', ' ')} on one of {'their' if many else 'its'} ranks; "
        f"the next start renders {'them' if many else 'it'} with {instead}"
    ) from error


def begin_where_it_fits(loaded: LoadedFamily, clip: Clip, context: JobContext) -> None:
    """Takes for clips of this kind the way that an earlier start of the job came down to. Collective over its ranks."""
    key, ranks = kind_key(clip), context.ranks
    if not ranks.shares_clips or key in loaded.levels:
        return
    found: list[int] | None = None
    if ranks.node.is_clip_root:
        level = 0
        while context.bucket.exists(layout.less_memory(context.shard, clip.model, key, level + 1)):
            level += 1
        none = context.bucket.exists(layout.less_memory(context.shard, clip.model, key, _RECORDED_NONE))
        found = [level, int(none)]
    loaded.levels[key], recorded_none = ranks.broadcast_in_clip(found, list[int])
    if recorded_none:
        # All ranks of the clip come here with the same clip, so they still record alike.
        loaded.stop_recording()
