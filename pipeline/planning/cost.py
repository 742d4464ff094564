"""Planned seconds of a clip, from the family's cost figures and the real broadcast plan.

A family's figures are estimated or measured (`CostFigures.measured`). Reports give what this run measured.
"""

from __future__ import annotations

from functools import lru_cache

from manifests.shards import ClipGroup
from pab.broadcast.plan import BroadcastPlan
from pab.broadcast.rules import NO_BROADCAST, Rules
from pab.family import ClipRequest, Family
from pipeline.run.rules import RunRules


class ClipCosts:
    """Plans and prices groups of clips; each group is worked out once, however many clips are of it."""

    def __init__(self, rules: RunRules, precision: str) -> None:
        self.rules = rules
        self._precision = precision
        self.plan = lru_cache(maxsize=4096)(self._plan)
        self.seconds = lru_cache(maxsize=4096)(self._seconds)
        self.seconds_without_broadcast = lru_cache(maxsize=4096)(self._seconds_without_broadcast)

    def load_s(self, model: str) -> float:
        """Returns the planned seconds to load a family."""
        return self.rules.families[model].cost.load_s

    def measured_on(self, model: str) -> str | None:
        """Returns on what a family's figures were measured; None where they are estimated."""
        return self.rules.families[model].cost.measured

    def two_branches(self, group: ClipGroup) -> bool:
        """Returns whether a clip has an unconditional branch, which another rank can render."""
        return group.guided and not self.rules.families[group.model].embedded_guidance

    def _plan(self, group: ClipGroup) -> BroadcastPlan:
        return self._plan_with(group, self.rules.broadcast(group.model, group.broadcast))

    def _seconds(self, group: ClipGroup) -> float:
        return clip_seconds(self.rules.families[group.model], group, self.plan(group))

    def _seconds_without_broadcast(self, group: ClipGroup) -> float:
        return clip_seconds(self.rules.families[group.model], group, self._plan_with(group, NO_BROADCAST))

    def _plan_with(self, group: ClipGroup, rules: Rules) -> BroadcastPlan:
        family = self.rules.families[group.model]
        return family.plan(clip_request(family, group), rules, self._precision)


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


def clip_seconds(family: Family, group: ClipGroup, plan: BroadcastPlan) -> float:
    """Returns the planned seconds of one clip on one rank.

    Every step with a pass costs `fixed_step_s`, and what a full step costs less the shares of the kinds of site that it
    reuses. A clip without guidance runs one of the two branches, so half of that, unless the family has only one. Decoding
    goes by pixels. Every loop costs as much as the first.

    What Foresight will reuse is not known before a clip is rendered: its plan computes everything, so its seconds are
    those without broadcast, a bound that holds whatever it decides.
    """
    cost, tokens = family.cost, family.num_tokens(group.num_frames, group.height, group.width)
    full_step = cost.linear_s * tokens + cost.quadratic_s * tokens * tokens / group.num_frames
    totals = {kind: plan.total(kind) for kind in cost.kind_shares}
    reused = sum(
        share * (1 - plan.computed(kind) / totals[kind]) for kind, share in cost.kind_shares.items() if totals[kind]
    )
    branches = 1.0 if group.guided or family.embedded_guidance else 0.5
    pixels = group.num_frames * group.height * group.width
    passes_s = (plan.num_steps - len(plan.skipped)) * cost.fixed_step_s
    sites_s = plan.num_steps * branches * full_step * (1 - reused)
    return group.loops * (passes_s + sites_s + cost.decode_s_per_pixel * pixels)
