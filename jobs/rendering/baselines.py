"""Clips that are rendered a second time without broadcast: one of each broadcast in a job, so that a speedup is measured."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from jobs.log import log_event
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
"""How many times the work of a clip with broadcast its baseline is at most taken to be."""


@dataclass(slots=True, kw_only=True)
class Baselines:
    """The baselines of one family on one replica; the first replica renders them. Collective over a clip's ranks.

    `measured`: broadcasts that were compared, in this start or an earlier one; added to.
    """

    context: JobContext
    measures: Measures
    deadline: Deadline
    watch: HangWatch
    measured: set[str]
    _compared: list[Attempt] = field(default_factory=list)

    def wants(self, clip: Clip, *, reuses: bool) -> bool:
        """Whether a clip is to be compared, for which it is rendered alone. `reuses`: whether its plan reuses anything."""
        first_replica = self.context.ranks.node.dp.rank == 0
        return (
            self.context.settings.render.baseline and first_replica and reuses and clip.broadcast not in self.measured
        )

    def take(self, rendered: Attempt) -> None:
        """Keeps a rendered clip until the others are done, if it is to be compared."""
        if self.wants(rendered.clip, reuses=len(rendered.plan.full_steps) < rendered.plan.num_steps):
            self.measured.add(rendered.clip.broadcast)
            self._compared.append(rendered)

    def holds(self, clip: Clip) -> bool:
        """Whether a clip is kept."""
        return any(rendered.clip == clip for rendered in self._compared)

    def render(self, loaded: LoadedFamily, finisher: Finisher | None) -> None:
        """Renders all that are kept, and lets them go."""
        compared, self._compared = self._compared, []
        for rendered in compared:
            self._render(loaded, rendered, finisher)

    def _render(self, loaded: LoadedFamily, rendered: Attempt, finisher: Finisher | None) -> None:
        """Renders one clip, if the job's time is enough; all its ranks alike."""
        ranks, clip_id = self.context.ranks, rendered.clip.clip_id
        if finisher is not None:
            # An encoder beside it would make the baseline slower than what it is compared with.
            finisher.wait()
        if not ranks.broadcast_in_clip(self.deadline.fits(rendered.units * _BASELINE_UNITS)):
            log_event(_LOG, "baseline_left", clip=clip_id, reason="the job's time is not enough")
            return
        log_event(_LOG, "baseline_started", clip=clip_id)
        try:
            with self.watch.over(clip_id):
                self.measures.measure_baseline(loaded, rendered, self.context)
        except (RuntimeError, ArithmeticError, ValueError) as error:
            # Every clip is safe by now: only where ranks wait for each other must the job end.
            if ranks.shares_clips:
                raise
            log_event(_LOG, "baseline_failed", level=logging.ERROR, error=repr(error))
        log_event(_LOG, "baseline_ended", clip=clip_id, seconds=self.measures.baseline_s)
