"""What a clip's sites keep between steps. One `BroadcastState` lives as long as one denoising loop.

A new clip gets a new state, so nothing has to be reset and a clip after a failed one decides like the first. Outputs are
keyed by (site, guidance branch) and freed at their last use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from pab.plan import BroadcastPlan

BOTH, COND, UNCOND = "both", "cond", "uncond"
"""Guidance branches: one pass over both rows, or a pass of its own for each."""


@dataclass(slots=True)
class BroadcastState:
    """Kept outputs of one clip, and how often each kind of site was computed and reused (the counted calls)."""

    plan: BroadcastPlan
    kept: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    computed: Counter[str] = field(default_factory=Counter)
    reused: Counter[str] = field(default_factory=Counter)

    def visit(self, step: int, branch: str) -> Visit:
        """Returns what the model is given for one pass of one step."""
        return Visit(state=self, step=step, branch=branch)

    @property
    def kept_bytes(self) -> int:
        """Memory held by kept outputs now."""
        return sum(output.numel() * output.element_size() for output in self.kept.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One pass of the model at one step for one guidance branch: hands out kept outputs and takes new ones."""

    state: BroadcastState
    step: int
    branch: str

    def reuse(self, sites: Sequence[str]) -> tuple[Tensor | None, ...]:
        """Returns, per site, the kept output that stands in for its computation, or None where it computes."""
        plan, found = self.state.plan, []
        for name in sites:
            index = plan.index[name]
            found.append(self.state.kept[name, self.branch] if plan.reuses(self.step, index) else None)
        return tuple(found)

    def wants(self, sites: Sequence[str]) -> tuple[bool, ...]:
        """Returns, per site, whether what it computes at this step is reused later and must be handed to `keep`."""
        plan = self.state.plan
        return tuple(
            not plan.reuses(self.step, plan.index[name]) and plan.keeps(self.step, plan.index[name]) for name in sites
        )

    def keep(self, sites: Sequence[str], outputs: Sequence[Tensor | None]) -> None:
        """Takes the outputs of sites that were wanted (None for the others), and frees what was used for the last time."""
        plan, state = self.state.plan, self.state
        for name, output in zip(sites, outputs, strict=True):
            index = plan.index[name]
            kind = plan.sites[index].kind
            if plan.reuses(self.step, index):
                state.reused[kind] += 1
                if plan.is_last_use(self.step, index):
                    del state.kept[name, self.branch]
                continue
            state.computed[kind] += 1
            if plan.keeps(self.step, index):
                assert output is not None, f"site {name} computed at step {self.step} but handed over nothing"
                state.kept[name, self.branch] = output
