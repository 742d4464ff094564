"""Planned seconds of a clip, from the family's figures and the real broadcast plan.

Figures are estimated or measured (`pipeline.planning.figures`). Reports give what this run measured.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import lru_cache

from manifests.shards import ClipGroup
from pab.broadcast.plan import BroadcastPlan
from pab.broadcast.rules import NO_BROADCAST, Rules
from pab.family import ClipRequest, CostFigures, Family
from pipeline.planning.figures import FiguresSource
from pipeline.run.rules import RunRules

EAGER = "eager"
"""What figures that were measured with eager blocks say of themselves."""
INT8_SLOWER = 1.02
"""A clip whose kept outputs are 8-bit integers takes so many times as long (docs/performance.md: Open-Sora, PAB246)."""


EAGER_TIMES, EAGER_TIMES_WITHOUT_KERNELS = 1.8, 1.2
"""How many times as long eager blocks take as compiled ones on a GPU: with fused kernels (Latte, 12.81 and 6.97 s), and
without (Latte of the diffusers library, 10.49 and 8.96 s)."""


class ClipCosts:
    """Plans and prices groups of clips; each group is worked out once, however many clips are of it.

    `precision`: the run's, or "auto" for each family's own. `float8`: which of `pab.family.FLOAT8_PARTS` the run computes in
    8-bit floats. `eager`: families whose blocks are not compiled, on GPUs.
    """

    def __init__(
        self,
        rules: RunRules,
        precision: str,
        source: FiguresSource | None = None,
        *,
        float8: tuple[str, ...] = (),
        eager: Collection[str] = (),
    ) -> None:
        self.rules = rules
        self.precision = precision
        self.float8 = float8
        self.eager = frozenset(eager)
        self.source = source or FiguresSource()
        self.figures = lru_cache(maxsize=None)(self._figures)
        self.plan = lru_cache(maxsize=4096)(self._plan)
        self.seconds = lru_cache(maxsize=4096)(self._seconds)
        self.seconds_without_broadcast = lru_cache(maxsize=4096)(self._seconds_without_broadcast)

    def precision_of(self, model: str) -> str:
        """Returns the precision in which a family's clips are rendered."""
        return self.rules.families[model].precision_for(self.precision)

    def load_s(self, model: str) -> float:
        """Returns the planned seconds to load a family."""
        return self.figures(model).load_s

    def measured_on(self, model: str) -> str | None:
        """Returns on what a family's figures were measured; None where they are estimated."""
        return self.figures(model).measured

    def told(self, model: str) -> str:
        """Returns where a family's figures are from, in words."""
        told = self.source.told(self.rules.families[model], self.precision_of(model), self.float8)
        return f"{told}, scaled for eager blocks: estimated" if self._is_scaled_for_eager(model) else told

    def two_branches(self, group: ClipGroup) -> bool:
        """Returns whether a clip has an unconditional branch, which another rank can render."""
        return group.guided and not self.rules.families[group.model].embedded_guidance

    def _figures(self, model: str) -> CostFigures:
        family, precision = self.rules.families[model], self.precision_of(model)
        found = self.source.of(family, precision, self.float8)
        if not self._is_scaled_for_eager(model):
            return found
        times = eager_times(family, precision)
        return replace(found, measured=None, linear_s=found.linear_s * times, quadratic_s=found.quadratic_s * times)

    def _is_scaled_for_eager(self, model: str) -> bool:
        # Figures of eager blocks say so; those of a CPU are of eager blocks.
        measured = self.source.of(self.rules.families[model], self.precision_of(model), self.float8).measured
        return model in self.eager and measured is not None and EAGER not in measured

    def _plan(self, group: ClipGroup) -> BroadcastPlan:
        return self._plan_with(group, self.rules.broadcast(group.model, group.broadcast))

    def _seconds(self, group: ClipGroup) -> float:
        return self._seconds_of(group, self.plan(group))

    def _seconds_without_broadcast(self, group: ClipGroup) -> float:
        return self._seconds_of(group, self._plan_with(group, NO_BROADCAST))

    def _seconds_of(self, group: ClipGroup, plan: BroadcastPlan) -> float:
        return clip_seconds(self.rules.families[group.model], group, plan, self.figures(group.model))

    def _plan_with(self, group: ClipGroup, rules: Rules) -> BroadcastPlan:
        family = self.rules.families[group.model]
        return family.plan(clip_request(family, group), rules, self.precision_of(group.model))


def eager_times(family: Family, precision: str) -> float:
    """Returns how many times as long a family's eager blocks take on a GPU."""
    return EAGER_TIMES if family.fused_kernels and precision == "bfloat16" else EAGER_TIMES_WITHOUT_KERNELS


def clip_request(family: Family, group: ClipGroup) -> ClipRequest:
    """Returns a request of this group; what it leaves open (prompt, seed, fps) changes no noise level."""
    return ClipRequest(
        prompt="",
        negative_prompt=None,
        seed=0,
        num_frames=group.num_frames,
        height=group.height,
        width=group.width,
        fps=family.defaults.fps,
        num_steps=group.num_steps,
        guidance_scale=family.defaults.guidance_scale if group.guided else 1.0,
        sampling=group.sampling or None,
        flow_shift=group.flow_shift or None,
    )


def clip_seconds(family: Family, group: ClipGroup, plan: BroadcastPlan, figures: CostFigures) -> float:
    """Returns the planned seconds of one clip on one rank.

    Every step with a pass costs `fixed_step_s`, and what a full step costs less the seconds of the sites that it reuses. A
    clip without guidance runs one of the two branches, so half of that, unless the family has only one. Decoding goes by
    pixels. Every loop costs as much as the first.

    What Foresight will reuse is not known before a clip is rendered: its plan computes everything, so its seconds are
    those without broadcast, a bound that holds whatever it decides.
    """
    size = group.num_frames, group.height, group.width
    tokens, seen = family.num_tokens(*size), family.seen_tokens(*size)
    totals = {kind: plan.total(kind) for kind in figures.kind_shares}
    # By kind, the share of its calls that reuse.
    reused_s = sum(
        seconds * (1 - plan.computed(kind) / totals[kind])
        for kind, seconds in figures.kind_s(tokens, seen).items()
        if totals.get(kind)
    )
    branches = 1.0 if group.guided or family.embedded_guidance else 0.5
    # What the host does without blocks is about what it does for one of them.
    without_blocks = len(plan.stand_ins) * (1 - 1 / len(plan.blocks))
    passes_s = (plan.num_steps - len(plan.skipped) - without_blocks) * figures.fixed_step_s
    sites_s = plan.num_steps * branches * (figures.step_s(tokens, seen) - reused_s)
    pixels = group.num_frames * group.height * group.width
    return group.loops * (passes_s + sites_s + figures.decode_s_per_pixel * pixels)
