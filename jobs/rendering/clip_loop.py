"""The loop over the clips of one family on one replica: marks, renders (alone or in batches), hands over."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from jobs.log import log_event
from jobs.media.reference_access import ReferenceAccess
from jobs.outcome import ClipOutcome, Failed, skipped
from jobs.rendering.announce import Announcer
from jobs.rendering.batch_size import parts_of
from jobs.rendering.batch_work import on_device
from jobs.rendering.batching import Batching
from jobs.rendering.clip_attempt import Attempt
from jobs.rendering.context import JobContext, contain, contain_batch
from jobs.rendering.deadline import Deadline
from jobs.rendering.energy import EnergyMeter
from jobs.rendering.fallback import begin_where_it_fits, render_batch_in_memory, render_in_memory
from jobs.rendering.finish import Finisher
from jobs.rendering.hang import HangWatch
from jobs.rendering.job_report import Measures
from jobs.rendering.loaded_family import LoadedFamily, encode_prompts
from jobs.rendering.references import ClipReferences, take_references
from jobs.store import layout
from manifests.clip import Clip
from pab.family import Family
from pab.model import NotFiniteError

_LOG = logging.getLogger(__name__)
_NOTES = 4
"""Of clips that did not fit into memory, at most: looked for before the first clip of a kind."""
_NO_TIME, _RECORDED = 0, -1
"""Values in place of an attempt's number, which say why a clip is not begun."""


@dataclass(slots=True, kw_only=True)
class ClipLoop:
    """Renders clips with a loaded family. Collective over the clips' ranks; their root decides.

    `finisher`: None on ranks that are not a clip's root. `tell` is called for clips that ended. `left` collects the ids of
    clips for which the job has no time.
    """

    loaded: LoadedFamily
    context: JobContext
    deadline: Deadline
    measures: Measures
    watch: HangWatch
    finisher: Finisher | None
    announcer: Announcer | None
    tell: Callable[[Attempt, ClipOutcome], None]
    left: list[str]
    batching: Batching
    energy: EnergyMeter | None = None
    _suspect: bool = False
    """Whether one of the prompts may have killed the group in an earlier start."""

    def encode(self, clips: Sequence[Clip]) -> None:
        """Encodes the prompts of all clips; comes before anything is rendered."""
        self._suspect = not self._encode_prompts(clips)

    def begin_alone(self, waiting: Attempt) -> Attempt | None:
        """Marks and begins a clip that is rendered alone, a sample; None if that need not be, or there is no time."""
        self._let_others_be_recorded(waiting)
        (number,) = self._mark([waiting], alone=True)
        begun = self._begin([waiting], [number])
        if not begun:
            self.loaded.prompts.pop(waiting.clip.key, None)
        return begun[0] if begun else None

    def render_sample(self, attempt: Attempt) -> Failed | NotFiniteError | None:
        """Renders a clip that has begun, without handing it over; returns why it did not come out.

        A failure is written and told. Latents that are not finite are no failure yet: another plan may do better.
        """
        with self.watch.over_stage("look_for_memory_notes", extra_s=self.context.store_s(_NOTES)):
            begin_where_it_fits(self.loaded, attempt.clip, self.context)
        failed = self._render_alone(attempt, not_finite_fails=False)
        if isinstance(failed, Failed):
            self.tell(attempt, failed)
        elif failed is None:
            attempt.rendered_s = attempt.elapsed_s
        return failed

    def hand_over_sample(self, attempt: Attempt, error: NotFiniteError | None) -> None:
        """Hands over a sample that was rendered, or writes its failure, and frees its prompts."""
        self.loaded.prompts.pop(attempt.clip.key, None)
        if error is not None:
            self._fail_alone(attempt, error)
            return
        attempt.held_s = max(0.0, attempt.elapsed_s - attempt.rendered_s)
        self._learn(attempt)
        self._hand_over([attempt])

    def render(self, attempts: Sequence[Attempt]) -> None:
        """Renders all clips but the samples."""
        for alike in self.batching.runs(attempts, alone=self._suspect):
            queue = deque(alike)
            while queue:
                self._render_next(queue)
        self.measures.device_use.close_window()

    def _render_next(self, alike: deque[Attempt]) -> None:
        """Takes the next batch of clips of one kind from the queue, and renders it."""
        self._let_others_be_recorded(alike[0])
        numbers = self._mark(alike)
        taken = [alike.popleft() for _ in numbers]
        parts = self._parts(self._begin(taken, numbers))
        while parts:
            # Removed from the queue before it is rendered, so that its frames are freed as soon as it is recorded.
            self._render_at_once(parts.popleft())
        for waiting in taken:
            self.loaded.prompts.pop(waiting.clip.key, None)

    def _let_others_be_recorded(self, waiting: Attempt) -> None:
        # It, or its prompt, may have killed the group before and may do so again.
        if (waiting.number > 1 or self._suspect) and self.finisher is not None:
            self.finisher.wait()

    def _encode_prompts(self, clips: Sequence[Clip]) -> bool:
        """Encodes all prompts in one call. Returns False, without encoding, if an earlier start died during this call.

        One bad prompt must not make the other clips fail. So after such a death, or after an error, each clip encodes its
        own prompt, fails alone, and has a mark that counts if the group dies.
        """
        ranks, attempts = self.context.ranks, self.context.attempts
        root = ranks.node.is_clip_root
        mark = layout.encoding(self.context.shard, self.loaded.family.name, ranks.node.dp.rank)
        if not ranks.broadcast_in_clip(attempts.hold(mark) if root else None, bool):
            why = "an earlier start ended in their encoding"
            log_event(_LOG, "prompts_one_by_one", level=logging.WARNING, error=why)
            return False
        seconds = 0.0
        try:
            with self.watch.over(None):
                seconds = encode_prompts(self.loaded, clips)
        except (ValueError, RuntimeError) as error:
            log_event(_LOG, "prompts_one_by_one", level=logging.WARNING, error=repr(error))
        ranks.barrier()
        if root:
            attempts.release(mark)
        self.measures.prompts_s += seconds
        log_event(_LOG, "prompts_encoded", prompts=len(self.loaded.prompts), seconds=seconds)
        return True

    def _mark(self, alike: Sequence[Attempt], *, alone: bool = False) -> list[int]:
        """Writes the marks of the next clips; returns for each its attempt's number, or why it is not begun."""
        numbers: list[int] | None = None
        if self.context.ranks.node.is_clip_root:
            with self.watch.over_stage("mark", extra_s=self.context.store_s(2 * len(alike))):
                numbers = self._mark_next(alike, alone=alone)
        return self.context.ranks.broadcast_in_clip(numbers, list[int])

    def _mark_next(self, alike: Sequence[Attempt], *, alone: bool) -> list[int]:
        first = alike[0].clip
        # What is known of a kind is looked up only when its plan is decided.
        size = 1 if alone else self.batching.of(first).batch.next_size(len(alike))
        while size > 1 and not self.deadline.fits(size * self._units(first)):
            size //= 2
        return [self._mark_one(attempt.clip, attempt.number) for attempt in itertools.islice(alike, size)]

    def _mark_one(self, clip: Clip, number: int) -> int:
        # A job of another submit may have the same clip. If it has recorded it meanwhile, it is not rendered again.
        if self.context.bucket.is_recorded(clip.key):
            return _RECORDED
        return self.context.attempts.begin(clip.key, number) if self.deadline.fits(self._units(clip)) else _NO_TIME

    def _units(self, clip: Clip) -> float:
        # Some families round a very short clip down to 0 tokens.
        tokens = self.loaded.family.num_tokens(clip.num_frames, clip.height, clip.width)
        return float(max(1, tokens) * clip.num_steps * clip.loops)

    def _begin(self, taken: Sequence[Attempt], numbers: Sequence[int]) -> list[Attempt]:
        """Begins and returns the attempts that have their marks; announces the other clips."""
        begun: list[Attempt] = []
        for waiting, number in zip(taken, numbers, strict=True):
            clip, units = waiting.clip, self._units(waiting.clip)
            if number == _RECORDED:
                if self.context.ranks.node.is_clip_root:
                    self.tell(waiting.begin(waiting.number, units=units), skipped(clip))
                why = "recorded by another job since this one started"
                log_event(_LOG, "clip_skipped", clip=clip.clip_id, reason=why)
            elif number == _NO_TIME:
                self.left.append(clip.clip_id)
                log_event(_LOG, "clip_left", clip=clip.clip_id, reason="the job's time is not enough")
            else:
                log_event(_LOG, "clip_started", clip=clip.clip_id, attempt=number)
                if self.announcer is not None:
                    self.announcer.started(clip.clip_id)
                begun.append(waiting.begin(number, units=units))
        return begun

    def _parts(self, begun: Sequence[Attempt]) -> deque[list[Attempt]]:
        """Splits the begun attempts into batches: there may be fewer than planned, if another job recorded some."""
        parts: deque[list[Attempt]] = deque()
        rest = deque(begun)
        for size in parts_of(len(begun), own=self.context.settings.render.batch):
            part = [rest.popleft() for _ in range(size)]
            ids = tuple(each.clip.clip_id for each in part) if size > 1 else ()
            units = sum(each.units for each in part)
            for each in part:
                each.company, each.units = ids, units
            parts.append(part)
        return parts

    def _render_at_once(self, part: list[Attempt]) -> None:
        with self.watch.over_stage("look_for_memory_notes", extra_s=self.context.store_s(_NOTES)):
            begin_where_it_fits(self.loaded, part[0].clip, self.context)
        if len(part) > 1:
            self._render_batch(part)
        else:
            self._render(part[0])

    def _render(self, attempt: Attempt) -> bool:
        """Renders one clip and hands it to the finisher; returns whether it was rendered."""
        if (failed := self._render_alone(attempt, not_finite_fails=True)) is not None:
            self.tell(attempt, cast(Failed, failed))
            return False
        self.measures.device_use.clips.append(attempt.on_device)
        self._learn(attempt)
        self._hand_over([attempt])
        return True

    def _render_alone(self, attempt: Attempt, *, not_finite_fails: bool) -> Failed | NotFiniteError | None:
        references = self._references(self.loaded.family, attempt)
        if isinstance(references, Failed):
            return references

        def work() -> NotFiniteError | None:
            try:
                render_in_memory(self.loaded, attempt, context=self.context, references=references)
            except NotFiniteError as error:  # on every rank alike
                if not_finite_fails:
                    raise
                return error
            return None

        begun_j = self.energy.begin() if self.energy is not None else None
        with self.watch.over(attempt.clip.clip_id):
            failed = contain(attempt, self.context, work, collective=True)
        if failed is None:
            self.deadline.measured(attempt.units, attempt.elapsed_s)
            if self.energy is not None:
                self.energy.end([attempt], begun_j, attempt.coming.clock)
        return failed

    def _learn(self, attempt: Attempt) -> None:
        """Takes the times of a clip that was rendered alone, if others of its kind may be rendered in batches."""
        if not attempt.clip.references and attempt.clip.loops == 1:
            self.batching.measured([attempt])

    def _render_batch(self, attempts: Sequence[Attempt]) -> None:
        """Renders a batch; if the whole batch fails, renders its clips one by one."""
        context, first = self.context, attempts[0]
        work = partial(render_batch_in_memory, self.loaded, attempts, context=context)
        expected_s = self.deadline.expected_s(first.units)
        begun_j = self.energy.begin() if self.energy is not None else None
        with self.watch.over(", ".join(first.company), clips=len(attempts), expected_s=expected_s):
            errors = contain_batch(attempts, context, work)
        if errors is None:
            self._render_one_by_one(attempts)
            return
        self.deadline.measured(first.units, first.elapsed_s)
        if (use := on_device(attempts)) is not None:
            self.measures.device_use.clips.append(use)
            if self.energy is not None:
                self.energy.end(attempts, begun_j, use.decode)
        self.batching.measured(attempts)
        for attempt, error in zip(attempts, errors, strict=True):
            if error is not None:
                self._fail_alone(attempt, error)
        self._hand_over([attempt for attempt, error in zip(attempts, errors, strict=True) if error is None])

    def _fail_alone(self, attempt: Attempt, error: NotFiniteError) -> None:
        # All its ranks know of the error, and none waits for another: only the clip fails, not the group.
        if self.context.ranks.node.is_clip_root:
            failed = contain(attempt, self.context, partial(_fail, error), collective=False)
            self.tell(attempt, cast(Failed, failed))

    def _render_one_by_one(self, attempts: Sequence[Attempt]) -> None:
        came_out = [self._render(each.begin(each.number, units=self._units(each.clip))) for each in attempts]
        if all(came_out):
            self.batching.of(attempts[0].clip).batch.broke(len(attempts))

    def _references(self, family: Family, attempt: Attempt) -> ClipReferences | Failed | None:
        """Returns the references as the clip's root read them, or the failure: a bad file makes only its own clip fail."""
        if not attempt.clip.references:
            return None
        read: ClipReferences | Failed | None = None
        if self.context.ranks.node.is_clip_root:
            extra_s = self.context.store_s(1 + len(attempt.clip.references))
            with self.watch.over_stage("read_references", clip_id=attempt.clip.clip_id, extra_s=extra_s):
                read = contain(attempt, self.context, partial(self._read_references, family, attempt), collective=False)
        kind = ClipReferences | Failed
        return cast(ClipReferences | Failed, self.context.ranks.broadcast_in_clip(read, kind))

    def _read_references(self, family: Family, attempt: Attempt) -> ClipReferences:
        with attempt.stages.time("read_references"):
            if family.references is None:
                raise ValueError(f"{family.name} takes no references; leave the column empty")
            access = ReferenceAccess.of(self.context.settings.render)
            return take_references(attempt.clip, family.references, self.context.bucket.retry_policy, access=access)

    def _hand_over(self, rendered: Sequence[Attempt]) -> None:
        if self.finisher is not None and rendered:
            self.finisher.submit(rendered)


def _fail(error: NotFiniteError) -> None:
    raise error
