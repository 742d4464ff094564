"""Guards the quality of a job: renders samples of each plan first, with and without reuse, and steps down if they are bad.

A sample is recorded when the decision stands, as the plan that stands has rendered it; under plan `none` that is the sample
without reuse. Every rank decides alike: the samples' facts are gathered, and what rank 0 keeps in the bucket counts.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.log import log_event
from jobs.min_quality import floor_of, floor_text
from jobs.outcome import Failed
from jobs.quality.guard import are_good, why_not
from jobs.quality.vmaf import vmaf_limit_s
from jobs.rendering.clip_attempt import Attempt
from jobs.rendering.clip_loop import ClipLoop
from jobs.rendering.clip_work import note_instead
from jobs.rendering.context import GroupLostError, JobContext
from jobs.rendering.deadline import Deadline
from jobs.rendering.guard_decisions import decision, keep_decision, read_decision, undecided
from jobs.rendering.guarded_plans import NONE, GuardedPlan, next_milder
from jobs.rendering.hang import HangWatch
from jobs.rendering.job_report import Measures
from manifests.clip import Clip
from pab.family import Family
from pab.model import NotFiniteError

_LOG = logging.getLogger(__name__)
Json = dict[str, Any]
_BASELINE_UNITS = 3.0
"""Rendering a sample without reuse is expected to take at most this many times the work of the clip with reuse."""


@dataclass(slots=True, kw_only=True)
class Guard:
    """The guard of a job on one rank.

    `plans`: those of the job's clips. `decisions`: by plan, what earlier starts decided; this one adds its own.
    """

    context: JobContext
    measures: Measures
    deadline: Deadline
    watch: HangWatch
    plans: tuple[GuardedPlan, ...]
    decisions: dict[str, Json]
    _rendered: dict[str, Attempt] = field(default_factory=dict)
    """By clip key, samples that wait for the decision."""
    _without: dict[str, Attempt] = field(default_factory=dict)
    """The same clips without reuse."""
    _not_finite: dict[str, NotFiniteError] = field(default_factory=dict)

    def is_open(self, clips: Mapping[str, object]) -> bool:
        """Whether a plan of these clips, by key, is not decided yet: then all ranks of the job call `judge`."""
        return any(True for _ in self._open(clips))

    def _open(self, clips: Mapping[str, object]) -> Sequence[GuardedPlan]:
        return [p for p in self.plans if p.key not in self.decisions and any(key in clips for key in p.samples)]

    def apply(self, loop: ClipLoop) -> None:
        """Has a loaded family render as was decided so far."""
        for plan in self.plans:
            made = self.decisions.get(plan.key)
            if made is not None and plan.model == loop.loaded.family.name and made["stepped_down"]:
                loop.loaded.instead[plan.key] = made["rendered"]

    def judge(
        self, family: Family, clips: Mapping[str, Clip], own: Sequence[Attempt], loop: ClipLoop | None
    ) -> list[Attempt]:  # fmt: skip
        """Renders samples and decides about every open plan of these clips; returns the attempts that are left to make.

        Collective over the job's ranks. `clips`: those of a family in this start, by key, of all replicas. `own`: this
        replica's attempts at them. `loop`: None on a replica that has none of them.
        """
        waiting = {attempt.clip.key: attempt for attempt in own}
        for plan in self._open(clips):
            judged = _Judging(guard=self, plan=plan, family=family, clips=clips, loop=loop)
            made = judged.decide(waiting)
            self.decisions[plan.key] = made
            if loop is not None:
                self._settle(loop, plan, made)
        return [attempt for attempt in own if attempt.clip.key in waiting]

    def sample(self, loop: ClipLoop, waiting: Attempt) -> Json | None:
        """Renders one sample with and without reuse, and compares the two; None if it could not be compared.

        Collective over the clip's ranks. A sample that could not be compared is recorded as it is, or has failed.
        """
        attempt = loop.begin_alone(waiting)
        if attempt is None:
            return None
        error = loop.render_sample(attempt)
        if isinstance(error, Failed):
            return None
        without = self._render_without(loop, attempt)
        facts = None if without is None else self._compare(attempt, without, error)
        if without is None or not self.context.ranks.broadcast_in_clip(facts is not None, bool):
            loop.hand_over_sample(attempt, error)
            return None
        self._hold(attempt, without, error)
        # Ranks that are no clip's root have nothing to say; the root's facts are gathered.
        return facts if facts is not None else {}

    def again(self, loop: ClipLoop, key: str) -> Json | None:
        """Renders a sample again, by the plan that comes next, and compares it; None if it has failed or time is short."""
        before = self._rendered[key]
        if not self.context.ranks.broadcast_in_clip(self.deadline.fits(before.units), bool):
            log_event(_LOG, "sample_left", clip=before.clip.clip_id, reason="the job's time is not enough")
            return None
        self.measures.baseline_s += sum(before.stages.seconds.values())
        attempt = before.begin(before.number, units=before.units)
        error = loop.render_sample(attempt)
        if isinstance(error, Failed):
            del self._rendered[key], self._without[key]
            return None
        without = self._without[key]
        facts = self._compare(attempt, without, error)
        self._hold(attempt, without, error)
        return facts if facts is not None else {}

    def held(self, plan: GuardedPlan) -> list[str]:
        """Returns the keys of the samples that wait on this rank."""
        return [key for key in plan.samples if key in self._rendered]

    def _hold(self, attempt: Attempt, without: Attempt, error: NotFiniteError | None) -> None:
        key = attempt.clip.key
        self._rendered[key], self._without[key] = attempt, without
        self._not_finite.pop(key, None)
        if error is not None:
            self._not_finite[key] = error

    def _render_without(self, loop: ClipLoop, rendered: Attempt) -> Attempt | None:
        """Renders a sample without reuse if the job has enough time; the clip's root decides for its ranks."""
        ranks, clip_id = self.context.ranks, rendered.clip.clip_id
        if loop.finisher is not None:
            # An encoder that runs at the same time would make it too slow.
            loop.finisher.wait()
        if not ranks.broadcast_in_clip(self.deadline.fits(rendered.units * _BASELINE_UNITS), bool):
            log_event(_LOG, "baseline_left", clip=clip_id, reason="the job's time is not enough")
            return None
        log_event(_LOG, "baseline_started", clip=clip_id)
        without: Attempt | None = None
        try:
            with self.watch.over(clip_id):
                without = self.measures.render_baseline(loop.loaded, rendered, self.context)
        except NotFiniteError as error:  # on every rank alike
            log_event(_LOG, "baseline_failed", level=logging.ERROR, clip=clip_id, error=repr(error))
        except (RuntimeError, ArithmeticError, ValueError) as error:
            if ranks.shares_clips:
                self._give_up(loop, rendered, error)
            log_event(_LOG, "baseline_failed", level=logging.ERROR, clip=clip_id, error=repr(error))
        log_event(_LOG, "baseline_ended", clip=clip_id, seconds=self.measures.baseline_s)
        return without

    def _give_up(self, loop: ClipLoop, rendered: Attempt, error: BaseException) -> None:
        """Ends a group of ranks that cannot agree any more; its next start goes on unguarded, and says so."""
        clip = rendered.clip
        plan = next(plan for plan in self.plans if clip.key in plan.samples)
        why = f"clip {clip.clip_id} could not be rendered without reuse: {error!r}"
        keep_decision(self.context, plan, loop.loaded.family, self.undecided(plan, loop.loaded.family, why))
        self.context.attempts.take_back(clip.key, rendered.number)
        raise GroupLostError(f"{why}; the next start does not compare it") from error

    def undecided(self, plan: GuardedPlan, family: Family, why: str) -> Json:
        """Returns what stands for a plan of which no sample could be compared."""
        asked = self.context.settings.render.min_quality
        return undecided(plan, floor=floor_of(asked, family), min_quality=asked, why=why)

    def _compare(self, attempt: Attempt, without: Attempt, error: NotFiniteError | None) -> Json | None:
        """Returns what a sample is beside itself without reuse; None if that is not finite, and on ranks without frames."""
        if not self.context.ranks.node.is_clip_root:
            return None
        clip = attempt.clip
        extra_s = vmaf_limit_s(clip.num_frames * clip.loops, clip.height, clip.width)
        with self.watch.over_stage("compare", clip_id=clip.clip_id, extra_s=extra_s):
            facts = self.measures.compare(attempt, without, error)
        if facts is not None:
            log_event(
                _LOG, "sample_compared", clip=clip.clip_id, broadcast=facts["rendered"], psnr_db=facts["psnr_db"],
                ssim=facts["ssim"], vmaf=facts["vmaf"], alarms=facts["alarms"], not_finite=facts["not_finite"],
            )  # fmt: skip
        return facts

    def _settle(self, loop: ClipLoop, plan: GuardedPlan, made: Json) -> None:
        """Hands the waiting samples over, each as the decided plan has rendered it, or else without reuse."""
        loop.loaded.instead.pop(plan.key, None)
        self.apply(loop)
        for key in self.held(plan):
            attempt, without = self._rendered.pop(key), self._without.pop(key)
            error = self._not_finite.pop(key, None)
            kept = (attempt.instead or plan.broadcast) == (made["rendered"] or plan.broadcast)
            if not kept:
                without.units = attempt.units
                note_instead(without, NONE)
                attempt, error = without, None
            elif self.context.ranks.node.is_clip_root:
                attempt.without_reuse = without.coming
            loop.hand_over_sample(attempt, error)


@dataclass(slots=True, kw_only=True)
class _Judging:
    """One plan on its way down the ladder. The same on every rank of the job."""

    guard: Guard
    plan: GuardedPlan
    family: Family
    clips: Mapping[str, Clip]
    loop: ClipLoop | None

    def decide(self, waiting: dict[str, Attempt]) -> Json:
        """Returns the decision, and takes out of `waiting` the samples that were begun."""
        plan, context = self.plan, self.guard.context
        asked = context.settings.render.min_quality
        floor = floor_of(asked, self.family)
        log_event(_LOG, "guard_started", plan=plan.key, broadcast=plan.broadcast, floor=floor_text(floor))
        facts, tried, name = self._first(waiting), list[Json](), plan.broadcast
        if not facts:
            return self._undecided()
        while facts:
            share = max(sample["computed_share"] for sample in facts)
            tried.append({"broadcast": name, "computed_share": round(share, 5), "samples": facts})
            if floor is None or are_good(facts, floor):
                break
            why, failed = why_not(facts, floor), name
            name, facts = self._next(tried, share, facts)
            log_event(_LOG, "guard_stepped_down", level=logging.WARNING, broadcast=failed, next=name, why=why)
        else:
            name = NONE
        made: Json | None = None
        if context.ranks.place.rank == 0:
            made = decision(plan, rendered=name, tried=tried, floor=floor, min_quality=asked)
            with self.guard.watch.over_stage("guard", extra_s=context.store_s(3)):
                made = keep_decision(context, plan, self.family, made)
        made = context.ranks.broadcast_in_job(made, Json)
        log_event(_LOG, "guard_decided", broadcast=plan.broadcast, rendered=made["rendered"], why=made["why"])
        return made

    def _undecided(self) -> Json:
        """Returns what another start has decided meanwhile, or else that nothing is."""
        plan, context = self.plan, self.guard.context
        standing: Json | None = None
        if context.ranks.place.rank == 0:
            with self.guard.watch.over_stage("guard", extra_s=context.store_s(1)):
                standing = read_decision(context, plan, self.family)
        standing = context.ranks.broadcast_in_job(standing or {}, Json)
        if standing:
            log_event(
                _LOG, "guard_decided", broadcast=plan.broadcast, rendered=standing["rendered"], why=standing["why"]
            )
            return standing
        why = "no sample could be compared"
        log_event(_LOG, "guard_undecided", level=logging.WARNING, broadcast=plan.broadcast, why=why)
        return self.guard.undecided(plan, self.family, why)

    def _first(self, waiting: dict[str, Attempt]) -> list[Json]:
        """Renders samples by the plan that was asked for, until some could be compared; empty if none could."""
        guard, samples = self.guard, deque(key for key in self.plan.samples if key in self.clips)
        facts: list[Json] = []
        while samples and not facts:
            number = min(guard.context.settings.render.quality_samples, len(samples))
            chosen = [samples.popleft() for _ in range(number)]
            own = [waiting.pop(key) for key in chosen if key in waiting]
            facts = self._gathered([] if self.loop is None else [guard.sample(self.loop, each) for each in own])
        return facts

    def _next(self, tried: Sequence[Json], share: float, facts: Sequence[Json]) -> tuple[str, list[Json]]:
        """Renders the samples by the next plan of the ladder; there are no facts of `none`, which needs none."""
        guard, clip = self.guard, self.clips[f"{facts[0]['clip_id']}.{facts[0]['digest']}"]
        precision = guard.context.settings.render.precision_of(self.family)
        names = [each["broadcast"] for each in tried]
        name = next_milder(self.family, clip, tried=names, share=share, precision=precision)
        if name == NONE:
            return name, []
        found: list[Json | None] = []
        if self.loop is not None:
            self.loop.loaded.instead[self.plan.key] = name
            found = [guard.again(self.loop, key) for key in guard.held(self.plan)]
        return name, self._gathered(found)

    def _gathered(self, found: Sequence[Json | None]) -> list[Json]:
        here = [sample for sample in found if sample]
        return [sample for of_rank in self.guard.context.ranks.all_gather(here, list[Json]) for sample in of_rank]
