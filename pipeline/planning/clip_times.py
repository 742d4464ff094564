"""Seconds of a clip on the ranks that render it together, and where they are from.

Best is what earlier jobs measured, next what is scaled from their times on another mesh. Else the family's figures are
taken, which were measured on some GPU or estimated from operation counts.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import log2

from jobs.render_settings import IN_TURN, RECORD_AUTO, RECORD_OFF, RECORD_ON, RenderSettings
from jobs.settings import Mesh
from manifests.shards import ClipGroup
from pab.broadcast.rules import Rules
from pab.family import ClipRequest
from pab.sampling.recorded_sizes import can_be_recorded, gains_by_recording
from pipeline.planning.cost import INT8_SLOWER, ClipCosts, clip_request
from pipeline.planning.measured import NOTHING_MEASURED, MeasuredTimes
from pipeline.planning.scaling import expected, tokens_of

MEASURED, SCALED, ESTIMATED = "measured", "scaled from measured", "estimated"
_FIGURES = "from figures measured on "
CFG_EFFICIENCY, SP_EFFICIENCY = 0.97, 0.93
"""Of each doubling of ranks, where nothing is measured and the model knows nothing (`scaling.py`): not zero loss, so that of
equals the one that exchanges less wins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """Seconds, and where they are from."""

    seconds: float
    source: str


def source_of(figures_measured_on: str | None) -> str:
    """Returns how seconds (or bytes) that come from a family's figures are labelled."""
    return ESTIMATED if figures_measured_on is None else f"{_FIGURES}{figures_measured_on}"


def weakest(sources: Collection[str]) -> str:
    """Returns the label of a sum: that of its least certain part. Without parts nothing was measured."""
    return min(sources, key=_certainty, default=ESTIMATED)


def _certainty(source: str) -> tuple[int, str]:
    known = (ESTIMATED, None, SCALED, MEASURED)
    return known.index(None if source.startswith(_FIGURES) else source), source


class ClipTimes:
    """What clips take on a mesh's `cfg` x `sp` ranks; `dp` is how many such groups of ranks stand side by side.

    `keep`: how kept outputs are stored. `render`: how the run's clips are rendered; None: as settings are by default.
    """

    def __init__(
        self, costs: ClipCosts, measured: MeasuredTimes = NOTHING_MEASURED, *, render: RenderSettings | None = None
    ) -> None:
        self.costs = costs
        self.measured = measured
        self.render = render

    def per_clip(self, group: ClipGroup, mesh: Mesh, keep: str = "full") -> Timed:
        """Returns the seconds in which the ranks render one more clip: of a clip in a batch its share."""
        cfg, sp = self._axes(group, mesh)
        found = self.measured.seconds(group, cfg, sp, keep)
        return self._scaled(group, mesh, keep) if found is None else Timed(seconds=found, source=MEASURED)

    def latency(self, group: ClipGroup, mesh: Mesh, keep: str = "full") -> Timed:
        """Returns the seconds from a clip's first step to its frames, alone."""
        cfg, sp = self._axes(group, mesh)
        found = self.measured.latency(group, cfg, sp, keep)
        return self._scaled(group, mesh, keep) if found is None else Timed(seconds=found, source=MEASURED)

    def without_broadcast(self, group: ClipGroup, mesh: Mesh, keep: str = "full") -> float:
        """Returns `per_clip` of the clip rendered without broadcast, by the ratio that the family's figures give."""
        costs, slower = self.costs, self._slower(group, keep)
        ratio = costs.seconds_without_broadcast(group) / (costs.seconds(group) * slower)
        return self.per_clip(group, mesh, keep).seconds * ratio

    def _axes(self, group: ClipGroup, mesh: Mesh) -> tuple[int, int]:
        # A clip of one branch leaves nothing to share over cfg: both ranks render the same.
        return (mesh.cfg if self.costs.two_branches(group) else 1), mesh.sp

    def _scaled(self, group: ClipGroup, mesh: Mesh, keep: str) -> Timed:
        expected = self._expected(group, *self._axes(group, mesh), keep)
        for known_keep in dict.fromkeys((keep, "full", "int8")):
            for cfg, sp in self.measured.meshes(group, known_keep)[:1]:
                found = self.measured.seconds(group, cfg, sp, known_keep)
                assert found is not None, "a mesh that was measured has seconds"
                return Timed(seconds=found * expected / self._expected(group, cfg, sp, known_keep), source=SCALED)
        return Timed(seconds=expected, source=source_of(self.costs.measured_on(group.model)))

    def _expected(self, group: ClipGroup, cfg: int, sp: int, keep: str) -> float:
        return self.costs.seconds(group) * self._slower(group, keep) / self._times_faster(group, cfg, sp)

    def _times_faster(self, group: ClipGroup, cfg: int, sp: int) -> float:
        """Returns what splitting is worth: by the model of exchanges on a GPU, where the width of tokens is known."""
        costs, figures = self.costs, self.costs.figures(group.model)
        family = costs.rules.families[group.model]
        plan, request = costs.plan(group), clip_request(family, group)
        tokens = None if figures.device == "cpu" or sp == 1 else tokens_of(family, request, plan, figures)
        if tokens is None:
            return float(cfg * CFG_EFFICIENCY ** log2(cfg) * sp * SP_EFFICIENCY ** log2(sp))
        recorded = self._is_recorded(group, request, plan.rules, cfg, sp)
        # Of one loop, as the plan and what it exchanges are.
        one_loop_s = costs.seconds(group) / group.loops
        return expected(one_loop_s, plan, tokens, Mesh(cfg=cfg, sp=sp), recorded=recorded).times_faster

    def _is_recorded(self, group: ClipGroup, request: ClipRequest, rules: Rules, cfg: int, sp: int) -> bool:
        """Whether ranks with GPUs record the clips' loops, as `pab.execution.choice` and `records_loop` have it."""
        costs, render = self.costs, self.render
        asked = RECORD_AUTO if render is None else render.record_loops
        family = costs.rules.families[group.model]
        plain = group.model in costs.eager or costs.precision_of(group.model) != "bfloat16"
        # Of several loops only the first begins from noise, and no other one is recorded.
        if plain or group.loops > 1 or not family.records_loops or asked == RECORD_OFF:
            return False
        if asked == RECORD_ON:
            return can_be_recorded(rules)
        in_turn = render is not None and render.guidance_rows == IN_TURN and family.rows_in_turn
        return not in_turn and gains_by_recording(family, request, rules, cfg=cfg, sp=sp)

    def _slower(self, group: ClipGroup, keep: str) -> float:
        plan = self.costs.plan(group)
        return INT8_SLOWER if keep == "int8" and len(plan.full_steps) < plan.num_steps else 1.0
