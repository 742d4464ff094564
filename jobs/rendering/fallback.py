"""What a job falls back on, and says so, where memory is out or a loop cannot be recorded, instead of a failed clip.

Recorded loops go first, then kept outputs; they also go where one could not be recorded for any other reason, and where a
clip cannot be decoded beside them. A rank that renders a clip alone frees them and renders it again. Ranks that share a
clip cannot agree in the middle of a pass: the others may already wait in a collective for the one that has no more memory.
So that one leaves a note in the bucket and the group ends, as after any error of one rank; the attempt does not count, and
the next start begins there.
"""

from __future__ import annotations

import logging

import torch

from jobs.log import log_event
from jobs.rendering.clip_attempt import Attempt
from jobs.rendering.clip_work import NO_LOOPS, OUT_OF_MEMORY, render_clip
from jobs.rendering.context import GroupLostError, JobContext
from jobs.rendering.group import is_lost_peer
from jobs.rendering.keep_ways import kind_key
from jobs.rendering.loaded_family import LoadedFamily
from jobs.rendering.references import ClipReferences
from jobs.store import layout
from manifests.clip import Clip

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
            # torch's error of memory is a RuntimeError too, as all of CUDA's and NCCL's are.
            full = isinstance(error, torch.OutOfMemoryError)
            recording = loaded.recorder is not None and loaded.recorder.is_recording and not is_lost_peer(error)
            # A rank that decodes alone has let its loops go already.
            if (full or recording) and loaded.record_no_more():
                _tell(OUT_OF_MEMORY if full else _NOT_RECORDED, attempt, context, error, NO_LOOPS, level=_RECORDED_NONE)
            elif full and stage == "denoise" and loaded.keep_less(attempt.clip, settings):
                level = loaded.levels[kind_key(attempt.clip)]
                _tell(OUT_OF_MEMORY, attempt, context, error, str(loaded.way(attempt.clip, settings)), level=level)
            else:
                raise
        # Outside of `except`, so that the traceback no longer holds the clip's tensors.
        loaded.let_go()


def _tell(event: str, attempt: Attempt, context: JobContext, error: RuntimeError, instead: str, *, level: int) -> None:
    clip = attempt.clip
    log_event(_LOG, event, level=logging.WARNING, clip=clip.clip_id, error=str(error), next=instead)
    if not context.ranks.shares_clips:
        return
    note = {"clip_id": clip.clip_id, "way": instead, "error": str(error), "job": context.facts()}
    context.bucket.create_json(layout.less_memory(context.shard, clip.model, kind_key(clip), level), note)
    context.attempts.take_back(clip.key, attempt.number)
    raise GroupLostError(
        f"clip {clip.clip_id}: {event.replace('_', ' ')} on one of its ranks; the next start renders it with {instead}"
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
