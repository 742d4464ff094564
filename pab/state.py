"""What a clip's sites keep between steps. One `BroadcastState` lives as long as one denoising loop.

A new clip gets a new state, so nothing has to be reset and a clip after a failed one decides like the first. Outputs are
keyed by (site, guidance branch) and freed at their last use. Most sites hand over one tensor; a site that works on several
streams at once hands over all of them.
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
    kept: dict[tuple[str, str], tuple[Tensor, ...]] = field(default_factory=dict)
    computed: Counter[str] = field(default_factory=Counter)
    reused: Counter[str] = field(default_factory=Counter)

    def visit(self, step: int, branch: str) -> Visit:
        """Returns what the model is given for one pass of one step."""
        return Visit(state=self, step=step, branch=branch)

    @property
    def kept_bytes(self) -> int:
        """Memory held by kept outputs now."""
        return sum(stream.numel() * stream.element_size() for output in self.kept.values() for stream in output)


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One pass of the model at one step for one guidance branch: hands out kept outputs and takes new ones."""

    state: BroadcastState
    step: int
    branch: str

    def reuse(self, sites: Sequence[str]) -> tuple[Tensor | None, ...]:
        """Returns, per site, the kept output that stands in for its computation, or None where it computes."""
        found: list[Tensor | None] = []
        for name in sites:
            streams = self.reuse_streams(name)
            assert streams is None or len(streams) == 1, f"site {name} keeps {len(streams or ())} streams"
            found.append(None if streams is None else streams[0])
        return tuple(found)

    def reuse_streams(self, site: str) -> tuple[Tensor, ...] | None:
        """Returns all streams of a site's kept output, or None where it computes."""
        reuses = self.state.plan.reuses(self.step, self.state.plan.index[site])
        return self.state.kept[site, self.branch] if reuses else None

    def wants(self, sites: Sequence[str]) -> tuple[bool, ...]:
        """Returns, per site, whether what it computes at this step is reused later and must be handed to `keep`."""
        plan = self.state.plan
        return tuple(
            not plan.reuses(self.step, plan.index[name]) and plan.keeps(self.step, plan.index[name]) for name in sites
        )

    def keep(self, sites: Sequence[str], outputs: Sequence[Tensor | None]) -> None:
        """Takes the outputs of sites that were wanted (None for the others), and frees what was used for the last time."""
        for name, output in zip(sites, outputs, strict=True):
            self.keep_streams(name, None if output is None else (output,))

    def keep_streams(self, site: str, streams: tuple[Tensor, ...] | None) -> None:
        """Does what `keep` does, for one site and all streams of its output."""
        plan, state = self.state.plan, self.state
        index = plan.index[site]
        kind = plan.sites[index].kind
        if plan.reuses(self.step, index):
            state.reused[kind] += 1
            if plan.is_last_use(self.step, index):
                del state.kept[site, self.branch]
            return
        state.computed[kind] += 1
        if plan.keeps(self.step, index):
            assert streams is not None, f"site {site} computed at step {self.step} but handed over nothing"
            state.kept[site, self.branch] = streams
