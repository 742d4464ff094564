"""The outputs that a clip's sites keep between steps. One state lives as long as one denoising loop.

`BroadcastState` follows a plan; `ForesightState` (`foresight_state.py`) decides while the clip is rendered. Models use either
of them through `Visit`. Every clip gets a new state, so nothing is reset, and nothing of a failed clip remains. Outputs
are keyed by (site, guidance branch) and freed after their last use. Most sites keep one tensor; a site that works on several
streams keeps one per stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from pab.broadcast.plan import BroadcastPlan
from pab.kernels.kept_int8 import Packed, pack, unpack

BOTH, COND, UNCOND = "both", "cond", "uncond"
"""Guidance branches: one pass over both rows, or one pass for each row."""

_Output = TypeVar("_Output")
Kept = tuple[Tensor | Packed, ...]
"""All streams of a site's output, as they are stored between two steps."""
Reuse = tuple[Tensor | None, ...]
RunBlock = Callable[[Reuse, tuple[bool, ...]], tuple[Tensor, tuple[Tensor | None, ...]]]
"""Runs a block. Takes, per site, the output to reuse and whether the new output is wanted; returns tokens and outputs."""
Streams = tuple[Tensor, ...]
"""A site's output, or a block's tokens, that may be of several streams, such as video and text."""
ReuseStreams = tuple[Streams | None, ...]
RunStreams = Callable[[ReuseStreams, tuple[bool, ...]], tuple[Streams, ReuseStreams]]
"""Runs a block whose sites and tokens have streams. Otherwise as `RunBlock`."""


class Visit(Protocol):
    """One pass of the model at one step for one guidance branch: what a model may ask of the clip's state."""

    @property
    def step(self) -> int:
        """The step."""

    @property
    def branch(self) -> str:
        """The guidance branch."""

    def begin_blocks(self, tokens: Streams) -> bool:
        """Is told the tokens before the first block. Returns whether the blocks are to run."""

    def end_blocks(self, tokens: Streams) -> Streams:
        """Takes the tokens after the last block, or those before the first if none ran; returns what the model goes on with.

        Both calls are given the streams that the model reads after its blocks.
        """

    def run_block(self, sites: Sequence[str], x: Tensor, run: RunBlock, *, own: int) -> Tensor:
        """Returns the tokens after a block with these sites. The first `own` places in dim 1 of `x` are not padding."""

    def run_streams(
        self, sites: Sequence[str], run: RunStreams, *, own: Callable[[Streams], Sequence[int]]
    ) -> Streams:  # fmt: skip
        """Does the same for a block whose sites and tokens have streams.

        `own`: of the block's tokens, how many places in dim 1 of each stream are not padding.
        """


class ClipState(Protocol):
    """The state of one clip, as the denoising loop uses it."""

    computed: Counter[str]
    reused: Counter[str]
    kept_bytes_peak: int

    @property
    def kept(self) -> Mapping[tuple[str, str], Kept]:
        """Kept outputs by site and guidance branch."""

    def begin(self, step: int) -> None:
        """Is called before the passes of every step, on all ranks of the clip."""

    def visit(self, step: int, branch: str) -> Visit:
        """Returns what the model is given for one pass of one step."""

    def skip(self, branches: Sequence[str]) -> None:
        """Is called at a step without passes, instead of `visit`; counts every site of these branches as reused."""

    @property
    def kept_bytes(self) -> int:
        """Memory held by kept outputs now."""

    @property
    def decided(self) -> BroadcastPlan:
        """What was computed and reused, as a plan; complete after the last step."""


class Block(Protocol):
    """A block of a model, called as `(tokens, values of the pass..., reuse, wanted)`; the last two are per site, optional."""

    sites: tuple[str, ...]

    def __call__(self, x: Tensor, /, *shared: Any) -> Any:
        """Returns the new tokens and, per site, the output if it is wanted."""


def handed_over(outputs: Sequence[_Output | None], wanted: Sequence[bool]) -> tuple[_Output | None, ...]:
    """Returns a block's outputs by site; None for those that are not wanted."""
    return tuple(output if want else None for output, want in zip(outputs, wanted, strict=True))


def run_block(block: Block, x: Tensor, *shared: Any, visit: Visit | None, own: int) -> Tensor:
    """Returns the tokens after a block. The visit gives outputs to reuse and keeps new ones; without it all sites compute.

    `shared`: the block's other arguments. The first `own` places in dim 1 of `x` are not padding.
    """
    if visit is None:
        computed: Tensor = block(x, *shared)[0]
        return computed
    return visit.run_block(block.sites, x, lambda reuse, wanted: block(x, *shared, reuse, wanted), own=own)


def run_blocks(x: Tensor, run: Callable[[Tensor], Tensor], *, visit: Visit | None) -> Tensor:
    """Returns the tokens after all blocks, which `run` runs, or after what stands in for them."""
    if visit is None:
        return run(x)
    return visit.end_blocks((run(x) if visit.begin_blocks((x,)) else x,))[0]


def kept_bytes(kept: Mapping[tuple[str, str], Kept]) -> int:
    """Returns the bytes that kept outputs take."""
    return sum(stream.nbytes for output in kept.values() for stream in output)


def unpacked(kept: Kept) -> Streams:
    """Returns an output from how it is stored."""
    return tuple(unpack(stream) if isinstance(stream, Packed) else stream for stream in kept)


def residual_name(step: int) -> str:
    """Names the residual of all blocks of a step among kept outputs; no site has such a name."""
    return f"residual of step {step}"


@dataclass(slots=True)
class BroadcastState:
    """Kept outputs of one clip, and how often each kind of site computed and reused (the counted calls).

    `cache_dtype`: how outputs are stored, "full" (as they are) or "int8" (`pab.kernels.kept_int8`).
    """

    plan: BroadcastPlan
    cache_dtype: str = "full"
    kept: dict[tuple[str, str], Kept] = field(default_factory=dict)
    computed: Counter[str] = field(default_factory=Counter)
    reused: Counter[str] = field(default_factory=Counter)
    kept_bytes_peak: int = 0
    """The largest `kept_bytes` at the end of a step."""
    before_blocks: dict[str, Streams] = field(default_factory=dict)
    """During passes whose residual is kept, by guidance branch: the tokens before the first block."""

    @property
    def decided(self) -> BroadcastPlan:
        """The plan."""
        return self.plan

    def begin(self, step: int) -> None:
        """Does nothing: the plan is already decided."""

    def visit(self, step: int, branch: str) -> PlannedVisit:
        """Returns what the model is given for one pass of one step."""
        return PlannedVisit(state=self, step=step, branch=branch)

    def skip(self, branches: Sequence[str]) -> None:
        """Counts every site of these branches as reused."""
        for _ in branches:
            self.reused.update(site.kind for site in self.plan.sites)

    @property
    def kept_bytes(self) -> int:
        """Memory held by kept outputs now."""
        return kept_bytes(self.kept)

    def stored(self, streams: Streams) -> Kept:
        """Returns an output as it is stored."""
        return tuple(map(pack, streams)) if self.cache_dtype == "int8" else streams


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedVisit:
    """One pass of the model at one step for one guidance branch: returns kept outputs and stores new ones."""

    state: BroadcastState
    step: int
    branch: str

    def begin_blocks(self, tokens: Streams) -> bool:
        """Remembers the tokens where the residual is kept; at a step without blocks counts every site as reused."""
        plan, state = self.state.plan, self.state
        if self.step in plan.residual_uses:
            state.before_blocks[self.branch] = tokens
        if self.step in plan.stand_ins:
            state.skip((self.branch,))
            return False
        return True

    def end_blocks(self, tokens: Streams) -> Streams:
        """Keeps what the blocks added, if it stands in later; at a step without blocks adds what was kept."""
        plan, state = self.state.plan, self.state
        if self.step in plan.residual_uses:
            begun = state.before_blocks.pop(self.branch)
            residual = tuple(after - before for after, before in zip(tokens, begun, strict=True))
            state.kept[residual_name(self.step), self.branch] = state.stored(residual)
        if self.step not in plan.stand_ins:
            return tokens
        parts = plan.stand_ins[self.step].parts
        for made, weight in parts:
            name = residual_name(made), self.branch
            kept = unpacked(state.kept[name])
            tokens = tuple(torch.add(x, r, alpha=weight) for x, r in zip(tokens, kept, strict=True))
            if plan.residual_uses[made] == self.step:
                del state.kept[name]
        return tokens

    def run_block(self, sites: Sequence[str], x: Tensor, run: RunBlock, *, own: int) -> Tensor:
        """Returns the tokens after a block; each of its sites computes or reuses as planned."""
        x, outputs = run(self.reuse(sites), self.wants(sites))
        self.keep(sites, outputs)
        return x

    def run_streams(
        self, sites: Sequence[str], run: RunStreams, *, own: Callable[[Streams], Sequence[int]]
    ) -> Streams:  # fmt: skip
        """Does the same for a block whose sites and tokens have streams."""
        tokens, outputs = run(tuple(map(self._reuse, sites)), self.wants(sites))
        for name, streams in zip(sites, outputs, strict=True):
            self._keep(name, streams)
        return tokens

    def reuse(self, sites: Sequence[str]) -> Reuse:
        """Returns, per site, the kept output to reuse, or None if the site computes."""
        found: list[Tensor | None] = []
        for name in sites:
            streams = self._reuse(name)
            assert streams is None or len(streams) == 1, f"site {name} keeps {len(streams or ())} streams"
            found.append(None if streams is None else streams[0])
        return tuple(found)

    def wants(self, sites: Sequence[str]) -> tuple[bool, ...]:
        """Returns, per site, whether its output of this step is reused later and must be given to `keep`."""
        plan = self.state.plan
        return tuple(
            not plan.reuses(self.step, plan.index[name]) and plan.keeps(self.step, plan.index[name]) for name in sites
        )

    def keep(self, sites: Sequence[str], outputs: Sequence[Tensor | None]) -> None:
        """Takes the wanted outputs of sites (None for the others), and frees outputs after their last use."""
        for name, output in zip(sites, outputs, strict=True):
            self._keep(name, None if output is None else (output,))

    def _reuse(self, site: str) -> Streams | None:
        reuses = self.state.plan.reuses(self.step, self.state.plan.index[site])
        if not reuses:
            return None
        return unpacked(self.state.kept[site, self.branch])

    def _keep(self, site: str, streams: Streams | None) -> None:
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
            state.kept[site, self.branch] = state.stored(streams)
