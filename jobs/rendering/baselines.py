"""Clips that are rendered again without broadcast, one per broadcast in a job, so that reports have a measured speedup."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from jobs.log import log_event
from jobs.quality.vmaf import vmaf_limit_s
from jobs.rendering.clip_attempt import Attempt
from jobs.rendering.context import JobContext
from jobs.rendering.deadline import Deadline
from jobs.rendering.finish import Finisher
from jobs.rendering.hang import HangWatch
from jobs.rendering.job_report import Measures
from jobs.rendering.loaded_family import LoadedFamily
from manifests.clip import Clip

_LOG = logging.getLogger(__name__)
_BASELINE_UNITS = 3.0
"""A baseline is expected to take at most this many times the work of the clip with broadcast."""


@dataclass(slots=True, kw_only=True)
class Baselines:
    """The baselines of one family. Only the first replica renders them. Collective over a clip's ranks.

    `measured`: names of the broadcasts that were compared, in this start or an earlier one; this class adds to it.
    """

    context: JobContext
    measures: Measures
    deadline: Deadline
    watch: HangWatch
    measured: set[str]
    _compared: list[Attempt] = field(default_factory=list)

    def wants(self, clip: Clip, *, reuses: bool) -> bool:
        """Whether a clip is to be compared; such a clip is rendered alone. `reuses`: whether its plan reuses anything."""
        first_replica = self.context.ranks.node.dp.rank == 0
        return (
            self.context.settings.render.baseline and first_replica and reuses and clip.broadcast not in self.measured
        )

    def take(self, rendered: Attempt) -> None:
        """Keeps a rendered clip until the other clips are done, if it is to be compared."""
        if rendered.less is not None:
            return  # it is not what its broadcast's name says
        if self.wants(rendered.clip, reuses=len(rendered.plan.full_steps) < rendered.plan.num_steps):
            self.measured.add(rendered.clip.broadcast)
            self._compared.append(rendered)

    def holds(self, clip: Clip) -> bool:
        """Whether a clip is kept."""
        return any(rendered.clip == clip for rendered in self._compared)

    def render(self, loaded: LoadedFamily, finisher: Finisher | None) -> None:
        """Renders the baselines of all kept clips, then drops these clips."""
        compared, self._compared = self._compared, []
        for rendered in compared:
            self._render(loaded, rendered, finisher)

    def _render(self, loaded: LoadedFamily, rendered: Attempt, finisher: Finisher | None) -> None:
        """Renders one clip's baseline if the job has enough time; the clip's root decides for its ranks."""
        ranks, clip_id = self.context.ranks, rendered.clip.clip_id
        spoilt = False
        if finisher is not None:
            # An encoder that runs at the same time would make the baseline too slow.
            finisher.wait()
            spoilt = rendered.coming.spoilt
        if ranks.broadcast_in_clip(spoilt, bool):
            log_event(_LOG, "baseline_left", clip=clip_id, reason="the clip itself failed")
            return
        if not ranks.broadcast_in_clip(self.deadline.fits(rendered.units * _BASELINE_UNITS), bool):
            log_event(_LOG, "baseline_left", clip=clip_id, reason="the job's time is not enough")
            return
        log_event(_LOG, "baseline_started", clip=clip_id)
        try:
            with self.watch.over(clip_id):
                baseline = self.measures.render_baseline(loaded, rendered, self.context)
            if ranks.node.is_clip_root:
                clip = rendered.clip
                extra_s = vmaf_limit_s(clip.num_frames * clip.loops, clip.height, clip.width)
                with self.watch.over_stage("compare", clip_id=clip_id, extra_s=extra_s):
                    self.measures.take_baseline(rendered, baseline)
        except (RuntimeError, ArithmeticError, ValueError) as error:
            # All clips are recorded by now. The job has to end only if other ranks wait for this one.
            if ranks.shares_clips:
                raise
            log_event(_LOG, "baseline_failed", level=logging.ERROR, error=repr(error))
        log_event(_LOG, "baseline_ended", clip=clip_id, seconds=self.measures.baseline_s)
