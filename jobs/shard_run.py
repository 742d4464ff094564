"""One start of a job, from opening the group to the outcome: the loop over clips."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, cast

from jobs import layout
from jobs.announce import Announcer
from jobs.attempts import OpenAttempts, interruptible
from jobs.bucket import Bucket, BucketError
from jobs.clip_work import (
    Begun,
    ClipFrames,
    LoadedFamily,
    encode_prompts,
    load_family,
    render_frames,
)
from jobs.context import JobContext, contain
from jobs.finish import Finisher
from jobs.group import JobRanks, open_job
from jobs.hang import HangWatch
from jobs.job_report import Measures, leave_report, measured_broadcasts
from jobs.log import log_event, open_log
from jobs.outcome import ClipOutcome, Failed, Rendered, ShardOutcome, skipped
from jobs.pace import Pace
from jobs.patience import Patience
from jobs.references import ClipReferences, take_references
from jobs.scratch import open_scratch, remove_left_over
from jobs.todo import Todo, sort_shard
from manifests.clip import Clip
from pab.compile_cache import compile_cache
from pab.compiled import executing
from pab.family import Family

if TYPE_CHECKING:
    from jobs.render import RenderShard

_LOG = logging.getLogger(__name__)
_LAST_UPLOADS_S = 20.0
_LAST_LOG_S = 10.0
_LOG_FILE = "job.log"
_NO_TIME, _RECORDED = 0, -1
"""Instead of an attempt's number: why a clip is not begun."""
_BASELINE_UNITS = 3.0
"""How many times the work of a clip with broadcast its baseline is at most taken to be."""


def run_shard(job: RenderShard) -> ShardOutcome:
    """Renders what is left of a shard. Collective over the job's ranks; see `RenderShard.__call__`."""
    started = time.monotonic()
    with ExitStack() as stack:
        ranks = stack.enter_context(open_job(job.settings))
        scratch = stack.enter_context(open_scratch())
        bucket = Bucket(job.settings.output, patience=Patience(total_s=job.settings.upload_timeout_s))
        context = JobContext(
            settings=job.settings,
            shard=job.shard,
            bucket=bucket,
            ranks=ranks,
            attempts=OpenAttempts(bucket, job_id=ranks.place.job_id, start=ranks.place.start),
            scratch=scratch,
            again=job.again,
        )
        stack.enter_context(_kept_log(context))
        return _ShardRun(job, context, started).run()


@contextmanager
def _kept_log(context: JobContext) -> Iterator[None]:
    place = context.ranks.place
    file = context.scratch / _LOG_FILE
    with open_log(file, run=context.settings.run_id, job=layout.job_name(context.shard), rank=place.rank):
        try:
            yield
        except Exception:
            _LOG.exception("job_broken")
            raise
        finally:
            _keep_log(context)


def _keep_log(context: JobContext) -> None:
    place = context.ranks.place
    try:
        context.bucket.upload(context.scratch / _LOG_FILE, layout.job_log(context.shard, place.name, place.rank))
    except BucketError as error:
        log_event(_LOG, "log_not_kept", level=logging.ERROR, error=str(error))


class _ShardRun:
    """The clips of this rank's replica in this start, and what became of them."""

    def __init__(self, job: RenderShard, context: JobContext, started: float) -> None:
        self._job = job
        self._context = context
        self._ranks: JobRanks = context.ranks
        self._lock = threading.Lock()
        self._pace = Pace(started=started, deadline_s=job.settings.deadline_s)
        self._outcomes: list[ClipOutcome] = []
        self._left: list[str] = []
        self._announcer: Announcer | None = None
        self._finisher: Finisher | None = None
        self._started = started
        self._measures = Measures()
        self._wants_baselines = False
        self._has_baseline: set[str] = set()
        self._compared: list[tuple[Begun, ClipFrames]] = []
        self._watch = HangWatch(job.settings.hang_s, last_words=self._last_words)

    def run(self) -> ShardOutcome:
        """Renders, then joins what all replicas did."""
        ranks = self._ranks
        log_event(_LOG, "job_started", **self._context.facts())
        remove_left_over()
        self._wants_baselines = self._context.settings.baseline
        todo, self._has_baseline = ranks.share(self._look() if ranks.place.rank == 0 else None)
        log_event(_LOG, "shard_sorted", clips=len(todo.order), to_render=len(todo.clips), ended=len(todo.ended))
        mine = todo.clips[ranks.node.dp.rank :: ranks.node.dp.size]
        with ExitStack() as stack:
            progress = None
            if ranks.place.rank == 0:
                ids = [clip.clip_id for clip, _ in todo.clips]
                progress = stack.enter_context(self._job.progress.open(layout.job_name(self._context.shard), ids))
            self._announcer = stack.enter_context(Announcer(ranks, progress))
            stack.enter_context(interruptible(self._take_back_marks))
            self._render_all(mine)
            outcome = self._joined(todo)
            self._report(todo, outcome)
            log_event(
                _LOG, "job_ended", rendered=sum(isinstance(clip, Rendered) for clip in outcome.clips),
                failed=sum(isinstance(clip, Failed) for clip in outcome.clips), left=len(outcome.left),
            )  # fmt: skip
        return outcome

    def _look(self) -> tuple[Todo, set[str]]:
        return sort_shard(self._context), measured_broadcasts(self._context)

    def _report(self, todo: Todo, outcome: ShardOutcome) -> None:
        self._measures.take_peaks()
        measures = self._ranks.join(self._measures)
        if self._ranks.place.rank == 0:
            leave_report(self._context, todo, outcome, measures, time.monotonic() - self._started)
        # The others wait: a cluster may end a job soon after its first rank has ended.
        self._ranks.join(None)

    def _render_all(self, clips: Sequence[tuple[Clip, int]]) -> None:
        self._finisher = Finisher(self._context, self._tell) if self._ranks.node.is_clip_root else None
        try:
            for name, group in groupby(clips, key=lambda item: item[0].model):
                self._render_family(self._job.find_family(name), list(group))
        except BaseException as error:
            if not isinstance(error, Exception):
                self._take_back_marks()
            self._save_last_uploads()
            raise
        self._close_finisher(None)

    def _take_back_marks(self) -> None:
        # Told to end from outside: the clips in hand did not kill the group, unless one of their ranks is gone already.
        if self._ranks.all_told_to_end():
            marks = self._context.attempts.withdraw()
            log_event(_LOG, "attempts_taken_back", attempts=len(marks))

    def _last_words(self) -> None:
        # The rank hangs in a clip; the one before it may still be on its way.
        self._save_last_uploads()
        log = threading.Thread(target=_keep_log, args=(self._context,), daemon=True)
        log.start()
        log.join(_LAST_LOG_S)
        shutil.rmtree(self._context.scratch, ignore_errors=True)

    def _save_last_uploads(self) -> None:
        try:
            self._close_finisher(_LAST_UPLOADS_S)
        except Exception as error:
            log_event(_LOG, "uploads_lost", level=logging.ERROR, error=repr(error))

    def _close_finisher(self, timeout_s: float | None) -> None:
        if self._finisher is not None:
            self._finisher.close(timeout_s)

    def _render_family(self, family: Family, clips: Sequence[tuple[Clip, int]]) -> None:
        with ExitStack() as stack:
            loaded = self._load(family, stack)
            try:
                self._render_clips(loaded, clips)
            finally:
                if loaded.graphs is not None:
                    self._measures.compiled = self._measures.compiled.plus(loaded.graphs.so_far())

    def _load(self, family: Family, stack: ExitStack) -> LoadedFamily:
        settings, node = self._context.settings, self._ranks.node
        loaded = load_family(family, settings, node.device, clip_axis=node.clip)
        if loaded.execution.compiled:
            stack.enter_context(compile_cache(settings.compile_cache, loaded.execution.attention))
        stack.enter_context(executing(loaded.execution))
        self._measures.load_s[family.name] = loaded.load_s
        log_event(
            _LOG, "model_loaded", model=family.name, load_s=loaded.load_s, compiled=loaded.execution.compiled,
            attention=loaded.execution.attention, kernels=loaded.execution.kernels,
        )  # fmt: skip
        return loaded

    def _render_clips(self, loaded: LoadedFamily, clips: Sequence[tuple[Clip, int]]) -> None:
        seconds = self._encode_prompts(loaded, [clip for clip, _ in clips])
        suspect = seconds is None
        self._measures.prompts_s += seconds or 0.0
        log_event(_LOG, "prompts_encoded", prompts=len(loaded.prompts), seconds=seconds)
        for clip, attempt in clips:
            units = _units(loaded.family, clip)
            if (attempt > 1 or suspect) and self._finisher is not None:
                # It may kill the group, as it or its prompt did before: no other clip is in hand should that be so.
                self._finisher.wait()
            begun = self._begin(clip, attempt, units)
            if begun is not None:
                self._render(loaded, begun)
            if not any(compared.clip == clip for compared, _ in self._compared):
                loaded.prompts.pop(clip.key, None)
        self._measures.device_use.close_window()
        compared, self._compared = self._compared, []
        for begun, rendered in compared:
            self._measure_baseline(loaded, begun, rendered)

    def _encode_prompts(self, loaded: LoadedFamily, clips: Sequence[Clip]) -> float | None:
        """Encodes all prompts in one call; returns the seconds it took, None if an earlier start ended in the midst of it.

        One bad prompt must not take the others along. After that, or after an error, each clip encodes its own, fails
        alone, and has a mark that counts against it should the group die with it.
        """
        root, attempts = self._ranks.node.is_clip_root, self._context.attempts
        mark = layout.encoding(self._context.shard, loaded.family.name, self._ranks.node.dp.rank)
        if not self._ranks.agree(attempts.hold(mark) if root else None):
            log_event(
                _LOG, "prompts_one_by_one", level=logging.WARNING, error="an earlier start ended in their encoding"
            )
            return None
        seconds = 0.0
        try:
            with self._watch.over(None):
                seconds = encode_prompts(loaded, clips)
        except (ValueError, RuntimeError) as error:
            log_event(_LOG, "prompts_one_by_one", level=logging.WARNING, error=repr(error))
        self._ranks.meet()
        if root:
            attempts.release(mark)
        return seconds

    def _begin(self, clip: Clip, attempt: int, units: float) -> Begun | None:
        """Leaves the attempt's mark, or None when the clip does not fit into the job's time; all its ranks alike."""
        number = self._ranks.agree(self._mark(clip, attempt, units) if self._ranks.node.is_clip_root else None)
        if number == _RECORDED:
            if self._ranks.node.is_clip_root:
                self._tell(Begun(clip=clip, attempt=attempt), skipped(clip))
            log_event(_LOG, "clip_skipped", clip=clip.clip_id, reason="recorded by another job since this one started")
            return None
        if number == _NO_TIME:
            self._left.append(clip.clip_id)
            log_event(_LOG, "clip_left", clip=clip.clip_id, reason="the job's time is not enough")
            return None
        log_event(_LOG, "clip_started", clip=clip.clip_id, attempt=number)
        if self._announcer is not None:
            self._announcer.started(clip.clip_id)
        return Begun(clip=clip, attempt=number, units=units)

    def _mark(self, clip: Clip, attempt: int, units: float) -> int:
        # Another submit's job may hold the same clip: what it has recorded meanwhile is not rendered again.
        if self._context.bucket.exists(layout.record(clip.key)):
            return _RECORDED
        return self._context.attempts.begin(clip.key, attempt) if self._pace.fits(units) else _NO_TIME

    def _render(self, loaded: LoadedFamily, begun: Begun) -> None:
        node = self._ranks.node
        references = self._references(loaded.family, begun)
        if isinstance(references, Failed):
            return self._tell(begun, references)
        work = partial(render_frames, loaded, begun, settings=self._context.settings, group=node, references=references)
        with self._watch.over(begun.clip.clip_id):
            rendered = contain(begun, self._context, work, collective=True)
        if isinstance(rendered, Failed):
            return self._tell(begun, rendered)
        self._pace.measured(begun.units, begun.elapsed_s)
        self._measures.device_use.clips.append(rendered.on_device)
        if self._wants_baselines and node.dp.rank == 0 and self._is_first_of_its_broadcast(begun.clip, rendered):
            self._has_baseline.add(begun.clip.broadcast)
            self._compared.append((begun, rendered))
        return self._hand_over(begun, rendered)

    def _references(self, family: Family, begun: Begun) -> ClipReferences | Failed | None:
        """Returns what the clip's root has read of its references, or how that failed: one bad file is one clip's failure."""
        if not begun.clip.references:
            return None
        read: ClipReferences | Failed | None = None
        if self._ranks.node.is_clip_root:
            read = contain(begun, self._context, partial(self._read_references, family, begun), collective=False)
        return cast(ClipReferences | Failed, self._ranks.agree(read))

    def _read_references(self, family: Family, begun: Begun) -> ClipReferences:
        with begun.stages.time("read_references"):
            if family.references is None:
                raise ValueError(f"{family.name} takes no references; leave the column empty")
            return take_references(begun.clip, family.references, self._context.bucket.patience)

    def _is_first_of_its_broadcast(self, clip: Clip, rendered: ClipFrames) -> bool:
        reuses = len(rendered.plan.full_steps) < rendered.plan.num_steps
        return reuses and clip.broadcast not in self._has_baseline

    def _measure_baseline(self, loaded: LoadedFamily, begun: Begun, rendered: ClipFrames) -> None:
        """Renders a clip that used broadcast again without it, if the job's time is enough; all its ranks alike."""
        if self._finisher is not None:
            # An encoder beside it would make the baseline slower than what it is compared with.
            self._finisher.wait()
        if not self._ranks.agree(self._pace.fits(begun.units * _BASELINE_UNITS)):
            log_event(_LOG, "baseline_left", clip=begun.clip.clip_id, reason="the job's time is not enough")
            return
        log_event(_LOG, "baseline_started", clip=begun.clip.clip_id)
        try:
            with self._watch.over(begun.clip.clip_id):
                self._measures.measure_baseline(loaded, begun.clip, rendered, self._context)
        except (RuntimeError, ArithmeticError, ValueError) as error:
            # Every clip is safe by now: only where ranks wait for each other must the job end.
            if self._ranks.shares_clips:
                raise
            log_event(_LOG, "baseline_failed", level=logging.ERROR, error=repr(error))
        log_event(_LOG, "baseline_ended", clip=begun.clip.clip_id, seconds=self._measures.baseline_s)

    def _hand_over(self, begun: Begun, rendered: ClipFrames) -> None:
        if self._finisher is not None:
            self._finisher.submit(begun, rendered)

    def _tell(self, begun: Begun, outcome: ClipOutcome) -> None:
        if isinstance(outcome, Rendered):
            self._pace.measured(begun.units, outcome.elapsed_s)
        with self._lock:
            self._outcomes.append(outcome)
        if self._announcer is not None:
            word = "failed" if isinstance(outcome, Failed) else "rendered"
            self._announcer.finished(begun.clip.clip_id, word, begun.elapsed_s)

    def _joined(self, todo: Todo) -> ShardOutcome:
        joined = self._ranks.join((self._outcomes, self._left if self._ranks.node.is_clip_root else []))
        by_id = {clip.clip_id: clip for outcomes, _ in joined for clip in outcomes}
        by_id |= {clip.clip_id: clip for clip in todo.ended}
        left = {clip_id for _, ids in joined for clip_id in ids} | {clip.clip_id for clip in todo.put_off}
        ids = [clip.clip_id for clip in todo.order]
        return ShardOutcome(
            shard=self._context.shard,
            attempt=self._ranks.place.start,
            clips=tuple(by_id[clip_id] for clip_id in ids if clip_id in by_id),
            left=tuple(clip_id for clip_id in ids if clip_id in left),
        )


def _units(family: Family, clip: Clip) -> float:
    # A family may round a very short clip down to no token at all.
    return float(max(1, family.num_tokens(clip.num_frames, clip.height, clip.width)) * clip.num_steps * clip.loops)
