"""One start of a job, from opening the group to the outcome. `jobs.rendering.clip_loop` renders the clips of a family."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from jobs.log import log_event
from jobs.media.ffmpeg import deadline_s as ffmpeg_deadline_s
from jobs.outcome import ClipOutcome, Failed, Rendered, ShardOutcome
from jobs.provenance.sign import open_signer
from jobs.rendering.announce import Announcer
from jobs.rendering.attempts import OpenAttempts, interruptible
from jobs.rendering.batching import Batching
from jobs.rendering.clip_attempt import Attempt
from jobs.rendering.clip_loop import ClipLoop
from jobs.rendering.clip_loras import clip_loras
from jobs.rendering.context import JobContext
from jobs.rendering.deadline import Deadline
from jobs.rendering.energy import EnergyCounter, EnergyMeter, gpu_counter, open_meter
from jobs.rendering.finish import Finisher
from jobs.rendering.group import JobRanks, open_job
from jobs.rendering.guard import Guard
from jobs.rendering.guard_decisions import read_decision
from jobs.rendering.guarded_plans import GuardedPlan, guarded_plans
from jobs.rendering.hang import HangWatch
from jobs.rendering.job_report import Measures, leave_report
from jobs.rendering.kept_log import keep_log, kept_log
from jobs.rendering.loaded_family import LoadedFamily, load_family
from jobs.rendering.scratch import open_scratch, remove_left_over
from jobs.rendering.todo import Todo, sort_shard
from jobs.store import layout
from jobs.store.bucket import Bucket
from jobs.store.retry import RetryPolicy
from jobs.version import CODE, program
from manifests.clip import Clip
from pab.execution.compile_cache import CompileCacheError, compile_cache
from pab.execution.compiled import executing
from pab.family import Family

if TYPE_CHECKING:
    from jobs.render import RenderShard

_LOG = logging.getLogger(__name__)
_LAST_UPLOADS_S = 20.0
_LAST_LOG_S = 10.0
_STORE_CALLS = 10
"""Calls of the bucket in one stage, at most: finishing a clip makes eight."""


def run_shard(job: RenderShard, *, counter_of: Callable[[torch.device], EnergyCounter] = gpu_counter) -> ShardOutcome:
    """Renders the clips of a shard that are still to do. Collective over the job's ranks; see `RenderShard.__call__`.

    `counter_of`: returns what counts the energy of a device.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        ranks = stack.enter_context(open_job(job.settings))
        scratch = stack.enter_context(open_scratch())
        render = job.settings.render
        bucket = Bucket(
            job.settings.output,
            retry_policy=RetryPolicy(total_s=job.settings.upload_timeout_s),
            exclusive=job.settings.exclusive,
        )
        context = JobContext(
            settings=job.settings,
            shard=job.shard,
            bucket=bucket,
            ranks=ranks,
            attempts=OpenAttempts(bucket, job_id=ranks.place.job_id, start=ranks.place.start),
            scratch=scratch,
            again=job.again,
            # Before anything is loaded: without its key a job would render clips that it then cannot sign.
            signer=open_signer(render.c2pa_cert or "", render.c2pa_key or "") if render.c2pa else None,
        )
        stack.enter_context(kept_log(context))
        energy = stack.enter_context(open_meter(ranks, counter_of))
        return _ShardRun(job, context, started, energy).run()


def _log_refused(error: CompileCacheError) -> None:
    log_event(_LOG, "compile_cache_refused", level=logging.ERROR, error=str(error))


class _ShardRun:
    """The clips of this rank's replica in this start, and their outcomes."""

    def __init__(self, job: RenderShard, context: JobContext, started: float, energy: EnergyMeter | None) -> None:
        self._job = job
        self._energy = energy
        self._context = context
        self._ranks: JobRanks = context.ranks
        self._lock = threading.Lock()
        self._deadline = Deadline(started=started, deadline_s=job.settings.deadline_s)
        self._outcomes: list[ClipOutcome] = []
        self._left: list[str] = []
        self._announcer: Announcer | None = None
        self._finisher: Finisher | None = None
        self._started = started
        self._measures = Measures(program=program())
        self._watch = HangWatch(job.settings.hang_s, last_words=self._last_words)
        self._guard = self._new_guard((), {})

    def run(self) -> ShardOutcome:
        """Renders this replica's clips, then joins the outcomes of all replicas."""
        ranks = self._ranks
        log_event(_LOG, "job_started", **self._context.facts(), program=self._measures.program, code=CODE)
        if other := self._context.other_program:
            log_event(_LOG, "other_program", level=logging.WARNING, told=other)
        with self._watch.over_stage("remove_left_over", extra_s=self._context.store_s(1)):
            remove_left_over()
        todo = self._look()
        log_event(_LOG, "shard_sorted", clips=len(todo.order), to_render=len(todo.attempts), ended=len(todo.ended))
        with ExitStack() as stack:
            progress = None
            if ranks.place.rank == 0:
                ids = [attempt.clip.clip_id for attempt in todo.attempts]
                progress = stack.enter_context(self._job.progress.open(layout.job_name(self._context.shard), ids))
            self._announcer = stack.enter_context(Announcer(ranks, progress))
            stack.enter_context(interruptible(self._take_back_marks))
            self._render_all(todo.attempts)
            outcome = self._joined(todo)
            self._report(todo, outcome)
            log_event(
                _LOG, "job_ended", rendered=sum(isinstance(clip, Rendered) for clip in outcome.clips),
                failed=sum(isinstance(clip, Failed) for clip in outcome.clips), left=len(outcome.left),
            )  # fmt: skip
        return outcome

    def _look(self) -> Todo:
        """Returns what is to do, as rank 0 finds it."""
        ranks, found, decided = self._ranks, None, None
        if ranks.place.rank == 0:
            with self._watch.over_stage("sort_shard", extra_s=self._context.store_s(_STORE_CALLS)):
                found = sort_shard(self._context)
        todo = ranks.broadcast_in_job(found, Todo)
        plans = guarded_plans(
            todo.order,
            self._context.settings,
            self._job.find_family,
            again=frozenset(attempt.clip.key for attempt in todo.attempts if attempt.number > 1),
        )
        if ranks.place.rank == 0:
            with self._watch.over_stage("guard", extra_s=self._context.store_s(len(plans))):
                decided = self._decided(plans)
        self._guard = self._new_guard(plans, ranks.broadcast_in_job(decided, dict[str, dict[str, Any]]))
        return todo

    def _decided(self, plans: Sequence[GuardedPlan]) -> dict[str, dict[str, Any]]:
        known = {plan.key: read_decision(self._context, plan, self._job.find_family(plan.model)) for plan in plans}
        return {key: found for key, found in known.items() if found is not None}

    def _new_guard(self, plans: Sequence[GuardedPlan], decisions: dict[str, dict[str, Any]]) -> Guard:
        return Guard(
            context=self._context,
            measures=self._measures,
            deadline=self._deadline,
            watch=self._watch,
            plans=tuple(plans),
            decisions=decisions,
        )

    def _report(self, todo: Todo, outcome: ShardOutcome) -> None:
        self._measures.take_peaks()
        measures = self._ranks.all_gather(self._measures, Measures)
        if self._ranks.place.rank == 0:
            with self._watch.over_stage("report", extra_s=self._context.store_s(_STORE_CALLS)):
                leave_report(
                    self._context, todo, outcome, measures, time.monotonic() - self._started,
                    decisions=list(self._guard.decisions.values()),
                )  # fmt: skip
        # The other ranks wait here: a cluster may end a job soon after its first rank has ended.
        self._ranks.all_gather(None, None)

    def _render_all(self, attempts: Sequence[Attempt]) -> None:
        if self._ranks.node.is_clip_root:
            self._finisher = Finisher(self._context, self._tell, watching=self._over_finishing)
        all_rendered = False
        own = frozenset(attempt.clip.key for attempt in attempts[self._ranks.node.dp.rank :: self._ranks.node.dp.size])
        try:
            for (name, _), group in groupby(attempts, key=lambda attempt: (attempt.clip.model, attempt.clip.lora)):
                self._render_family(self._job.find_family(name), list(group), own)
            all_rendered = True
        except (KeyboardInterrupt, SystemExit):
            self._take_back_marks()
            raise
        finally:
            if not all_rendered:
                self._save_last_uploads()
        if self._finisher is not None:
            self._finisher.close()

    def _over_finishing(self, attempt: Attempt) -> AbstractContextManager[None]:
        # What has limits of its own ends as a failure of the clip: ffmpeg, once to encode and twice to check, and the bucket.
        clip = attempt.clip
        frames = clip.num_frames * clip.loops
        extra_s = 3 * ffmpeg_deadline_s(frames, clip.height, clip.width) + self._context.store_s(_STORE_CALLS)
        return self._watch.over_stage("finish", clip_id=clip.clip_id, extra_s=extra_s)

    def _take_back_marks(self) -> None:
        # A signal from outside ends the job, so its clips did not kill the group, unless one of their ranks died before.
        if self._ranks.all_told_to_end():
            marks = self._context.attempts.withdraw()
            log_event(_LOG, "attempts_taken_back", attempts=len(marks))

    def _last_words(self) -> None:
        # The rank hangs in a clip; the previous clip may not be recorded yet.
        self._save_last_uploads()
        log = threading.Thread(target=keep_log, args=(self._context,), daemon=True)
        log.start()
        log.join(_LAST_LOG_S)
        shutil.rmtree(self._context.scratch, ignore_errors=True)

    def _save_last_uploads(self) -> None:
        error = None if self._finisher is None else self._finisher.abandon(_LAST_UPLOADS_S)
        if error is not None:
            log_event(_LOG, "uploads_lost", level=logging.ERROR, error=repr(error))

    def _render_family(self, family: Family, group: Sequence[Attempt], own: frozenset[str]) -> None:
        """Renders this replica's part of a group of attempts; `own`: keys of the clips of this replica."""
        clips = {attempt.clip.key: attempt.clip for attempt in group}
        attempts = [attempt for attempt in group if attempt.clip.key in own]
        if not attempts:
            if self._guard.is_open(clips):  # the other replicas judge together with this one
                self._guard.judge(family, clips, attempts, None)
            return
        with ExitStack() as stack:
            loaded = self._load(family, attempts[0].clip, stack)
            stack.callback(loaded.forget_loops)
            loop = self._loop(loaded)
            try:
                loop.encode([attempt.clip for attempt in attempts])
                self._guard.apply(loop)
                if self._guard.is_open(clips):
                    attempts = self._guard.judge(family, clips, attempts, loop)
                loop.render(attempts)
            finally:
                if loaded.graphs is not None:
                    self._measures.compiled = self._measures.compiled.plus(loaded.graphs.so_far())

    def _loop(self, loaded: LoadedFamily) -> ClipLoop:
        return ClipLoop(
            loaded=loaded,
            context=self._context,
            deadline=self._deadline,
            measures=self._measures,
            watch=self._watch,
            finisher=self._finisher,
            announcer=self._announcer,
            tell=self._tell,
            left=self._left,
            batching=Batching(loaded=loaded, settings=self._context.settings, device=self._ranks.node.device),
            energy=self._energy,
        )

    def _load(self, family: Family, clip: Clip, stack: ExitStack) -> LoadedFamily:
        settings, node = self._context.settings, self._ranks.node
        with self._watch.over_stage("load", extra_s=self._context.store_s(1)):
            loras = clip_loras(clip, settings.loras_of(clip.model))
            loaded = load_family(family, settings, node.device, clip_axis=node.clip, loras=loras)
        if loaded.execution.compiled:
            place, attention = settings.render.compile_cache, loaded.execution.attention
            stack.enter_context(compile_cache(place, attention, refused=_log_refused))
        stack.enter_context(executing(loaded.execution, precision=loaded.precision))
        self._measures.load_s[family.name], self._measures.precision = loaded.load_s, loaded.precision
        choice = settings.render.weighed.get(family.name)
        log_event(
            _LOG, "model_loaded", model=family.name, load_s=loaded.load_s, precision=loaded.precision,
            compiled=loaded.execution.compiled, attention=loaded.execution.attention, kernels=loaded.execution.kernels,
            why=None if choice is None else choice.why,
        )  # fmt: skip
        return loaded

    def _tell(self, attempt: Attempt, outcome: ClipOutcome) -> None:
        if isinstance(outcome, Rendered):
            self._deadline.measured(attempt.units, outcome.elapsed_s)
        with self._lock:
            self._outcomes.append(outcome)
        if self._announcer is not None:
            word = "failed" if isinstance(outcome, Failed) else "rendered"
            self._announcer.finished(attempt.clip.clip_id, word, attempt.elapsed_s)

    def _joined(self, todo: Todo) -> ShardOutcome:
        left = self._left if self._ranks.node.is_clip_root else []
        joined = self._ranks.all_gather((self._outcomes, left), tuple[list[ClipOutcome], list[str]])
        by_id = {clip.clip_id: clip for outcomes, _ in joined for clip in outcomes}
        by_id |= {clip.clip_id: clip for clip in todo.ended}
        all_left = {clip_id for _, ids in joined for clip_id in ids} | {clip.clip_id for clip in todo.put_off}
        ids = [clip.clip_id for clip in todo.order]
        return ShardOutcome(
            shard=self._context.shard,
            attempt=self._ranks.place.start,
            clips=tuple(by_id[clip_id] for clip_id in ids if clip_id in by_id),
            left=tuple(clip_id for clip_id in ids if clip_id in all_left),
        )
