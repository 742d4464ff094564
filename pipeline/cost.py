"""Planned seconds of a clip, from the family's figures and the real broadcast plan. Reports give what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from pab.family import ClipRequest, Family
from pab.plan import NO_BROADCAST, BroadcastPlan, BroadcastRules, make_plan
from pipeline.rules import RunRules


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipKind:
    """What decides the cost of a clip: everything but its prompts and seed."""

    model: str
    num_frames: int
    height: int
    width: int
    fps: int
    num_steps: int
    guidance_scale: float
    broadcast: str

    def request(self) -> ClipRequest:
        """Returns a request of this kind; prompt and seed change no noise level."""
        return ClipRequest(
            prompt="",
            negative_prompt=None,
            seed=0,
            num_frames=self.num_frames,
            height=self.height,
            width=self.width,
            fps=self.fps,
            num_steps=self.num_steps,
            guidance_scale=self.guidance_scale,
        )


class ClipCosts:
    """Plans and prices kinds of clips; each kind is worked out once, however many clips are of it."""

    def __init__(self, rules: RunRules, precision: str) -> None:
        self._rules = rules
        self._precision = precision
        self.plan = lru_cache(maxsize=4096)(self._plan)
        self.seconds = lru_cache(maxsize=4096)(self._seconds)

    def _plan(self, kind: ClipKind) -> BroadcastPlan:
        family = self._rules.families[kind.model]
        return plan_of(family, kind, self._rules.broadcast(kind.model, kind.broadcast), self._precision)

    def _seconds(self, kind: ClipKind) -> float:
        return clip_seconds(self._rules.families[kind.model], kind, self.plan(kind))

    def seconds_without_broadcast(self, kind: ClipKind) -> float:
        """Returns the seconds of the same clip when nothing is reused."""
        family = self._rules.families[kind.model]
        return clip_seconds(family, kind, plan_of(family, kind, NO_BROADCAST, self._precision))


def plan_of(family: Family, kind: ClipKind, rules: BroadcastRules, precision: str) -> BroadcastPlan:
    """Returns the broadcast plan of a kind of clip: the one that its jobs will make."""
    return make_plan(rules, family.timesteps(kind.request(), precision), family.sites)


def clip_seconds(family: Family, kind: ClipKind, plan: BroadcastPlan) -> float:
    """Returns the planned seconds of one clip on one rank.

    Every step costs `fixed_step_s`, and what a full step costs less the shares of the kinds of site that it reuses. A
    clip without guidance (scale 1) runs one of the two branches, so half of that. Decoding goes by pixels.
    """
    cost, tokens = family.cost, family.num_tokens(kind.num_frames, kind.height, kind.width)
    full_step = cost.linear_s * tokens + cost.quadratic_s * tokens * tokens / kind.num_frames
    steps = plan.num_steps * (1 - sum(_saved(plan, cost.kind_shares).values()))
    branches = 1.0 if kind.guidance_scale != 1.0 else 0.5
    pixels = kind.num_frames * kind.height * kind.width
    return plan.num_steps * cost.fixed_step_s + branches * full_step * steps + cost.decode_s_per_pixel * pixels


def _saved(plan: BroadcastPlan, shares: Mapping[str, float]) -> dict[str, float]:
    totals = {kind: plan.total(kind) for kind in shares}
    return {kind: share * (1 - plan.computed(kind) / totals[kind]) for kind, share in shares.items() if totals[kind]}
