"""The kept outputs of a clip under Foresight, one per block, and its decisions. Lives as long as one denoising loop.

A block's output is the tokens after it, as in the paper. A reused block ignores the tokens that come in and returns those of
an earlier step, so the blocks before it affect only their own kept outputs at that step. Changes stay on the device as sums.
Before a step that may reuse, the clip's ranks gather all sums on every rank and add them in the same order, so all ranks make
the same decisions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pab.broadcast.foresight import ForesightDecisions, ForesightRules
from pab.broadcast.plan import BroadcastPlan
from pab.broadcast.state import ReuseStreams, RunBlock, RunStreams, Streams, kept_bytes
from pab.parallel.mesh import NodeGroup


@dataclass(slots=True, kw_only=True)
class ForesightState:
    """Kept block outputs of one clip, by (name of the block's first site, guidance branch), and the clip's decisions.

    `plan`: what `make_plan` returns for these rules; only its sites and timesteps are used.
    """

    plan: BroadcastPlan
    rules: ForesightRules
    group: NodeGroup
    kept: dict[tuple[str, str], tuple[Tensor, ...]] = field(default_factory=dict)
    computed: Counter[str] = field(default_factory=Counter)
    reused: Counter[str] = field(default_factory=Counter)
    kept_bytes_peak: int = 0
    decisions: ForesightDecisions = field(init=False)
    block_of: dict[str, int] = field(init=False)
    _sums: dict[int, list[Tensor | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        blocks = self.plan.blocks
        self.decisions = ForesightDecisions(
            rules=self.rules, num_steps=self.plan.num_steps, num_blocks=len(blocks)
        )  # fmt: skip
        self.block_of = {self.plan.sites[members[0]].name: i for i, members in enumerate(blocks)}

    @property
    def kept_bytes(self) -> int:
        """Memory held by kept outputs now."""
        return kept_bytes(self.kept)

    @property
    def decided(self) -> BroadcastPlan:
        """What was computed and reused, as a plan; complete after the last step."""
        sources: list[tuple[int, ...]] = []
        for step, reuse in enumerate(self.decisions.steps):
            row = [step] * len(self.plan.sites)
            for members, reused in zip(self.plan.blocks, reuse, strict=True):
                for i in members if reused else ():
                    row[i] = sources[step - 1][i]
            sources.append(tuple(row))
        plan = self.plan
        return BroadcastPlan(sites=plan.sites, timesteps=plan.timesteps, sources=tuple(sources), rules=plan.rules)

    def begin(self, step: int) -> None:
        """Decides which blocks reuse at a step. Collective; waits for the device where the step may reuse."""
        if self.rules.may_reuse(step, self.plan.num_steps):
            self._take_measured()
        self.decisions.decide(step)

    def visit(self, step: int, branch: str) -> ForesightVisit:
        """Returns the `Visit` for one pass of one step."""
        return ForesightVisit(state=self, step=step, branch=branch)

    def skip(self, branches: Sequence[str]) -> None:
        """Is never called: only plans leave passes out."""
        raise TypeError("foresight decides block by block in every pass")

    def measure(self, step: int, block: int, difference: Tensor) -> None:
        """Adds one pass's part of a block's change: the sum of squared differences over this rank's tokens."""
        sums = self._sums.setdefault(step, [None] * self.decisions.num_blocks)
        norm = torch.linalg.vector_norm(difference, dtype=torch.float32)
        before = sums[block]
        sums[block] = norm.square() if before is None else before + norm.square()

    def _take_measured(self) -> None:
        measured, self._sums = self._sums, {}
        known = [total for sums in measured.values() for total in sums if total is not None]
        if not known:
            return
        gathered = self.group.clip.all_gather(torch.stack(known))
        totals = iter(torch.stack(gathered).double().sum(dim=0).tolist())
        for step, sums in measured.items():
            self.decisions.measured(step, [None if total is None else next(totals) for total in sums])


@dataclass(frozen=True, slots=True, kw_only=True)
class ForesightVisit:
    """One pass of the model at one step for one guidance branch."""

    state: ForesightState
    step: int
    branch: str

    def begin_blocks(self, tokens: Streams) -> bool:
        """Returns that every pass runs its blocks, or reuses some of them."""
        return True

    def end_blocks(self, tokens: Streams) -> Streams:
        """Returns the tokens."""
        return tokens

    def run_block(self, sites: Sequence[str], x: Tensor, run: RunBlock, *, own: int) -> Tensor:
        """Returns the tokens after a block that computes or reuses as a whole."""

        def computed(reuse: ReuseStreams, wanted: tuple[bool, ...]) -> tuple[Streams, ReuseStreams]:
            return (run((None,) * len(reuse), wanted)[0],), ()

        (output,) = self.run_streams(sites, computed, own=lambda _: (own,))
        return output

    def run_streams(
        self, sites: Sequence[str], run: RunStreams, *, own: Callable[[Streams], Sequence[int]]
    ) -> Streams:  # fmt: skip
        """Does the same for a block whose tokens have streams; a change is that of all of them together."""
        state, key = self.state, (sites[0], self.branch)
        block = state.block_of[sites[0]]
        kinds = [state.plan.sites[i].kind for i in state.plan.blocks[block]]
        if state.decisions.steps[self.step][block]:
            state.reused.update(kinds)
            output = state.kept[key]
        else:
            state.computed.update(kinds)
            output, _ = run((None,) * len(sites), (False,) * len(sites))
            if state.decisions.measures(self.step):
                for places, now, before in zip(own(output), output, state.kept[key], strict=True):
                    state.measure(self.step, block, now[:, :places] - before[:, :places])
            state.kept[key] = output
        if not state.decisions.keeps(self.step):
            state.kept.pop(key, None)
        return output
