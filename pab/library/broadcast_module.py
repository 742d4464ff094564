"""Broadcast sites in a transformer that somebody else wrote: wrappers around its attention and MLP modules, and its blocks.

A block asks the pass that runs now which of its sites compute and which reuse, and tells them by attributes before it is
called. A site hands out what it was told to reuse, and leaves an output that is wanted in an attribute of its own, where the
block finds it afterwards. So the library's own block between the two is plain torch: it can be compiled as a whole, one
graph per step pattern, shared by all blocks of its kind. What is kept is the module's own output: a gate that the block puts
on it is the current step's.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pab.broadcast.sites import Site
from pab.broadcast.state import ReuseStreams, Streams, Visit, handed_over
from pab.parallel.mesh import SequenceParallel

LATENTS, TEXT = "hidden_states", "encoder_hidden_states"
"""Streams of tokens, by the names under which modules take them. Blocks return the latents' first, then the text's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockKernels:
    """How blocks run: the attention that exchanges tokens, and MLPs of 8-bit floats. All False is plain torch.

    `flash3`: by FlashAttention-3. `norm`: the norm over all heads and the rotation are one kernel. `float8`: queries, keys
    and values are 8-bit floats. `gelu8`: where products are of 8-bit floats, the MLP's GELU is in the first of them.
    """

    flash3: bool = False
    norm: bool = False
    float8: bool = False
    gelu8: bool = False


@dataclass(slots=True)
class CurrentPass:
    """Tells what is put into one loaded model which pass runs. Owned by that model, empty between passes.

    `sp`: the ranks that share the pass. `lengths`: of its streams of tokens before they were split, by name. `kernels`:
    which stay as they are from pass to pass.
    """

    visit: Visit | None = None
    sp: SequenceParallel = field(default_factory=SequenceParallel)
    lengths: dict[str, int] = field(default_factory=dict)
    kernels: BlockKernels = BlockKernels()
    runs_blocks: bool = True
    """Whether the blocks of this pass run; the first one asks."""

    @contextlib.contextmanager
    def running(self, visit: Visit, sp: SequenceParallel) -> Iterator[None]:
        """Lets the sites see a pass for the length of a `with` block."""
        assert self.visit is None, "one pass at a time"
        self.visit, self.sp = visit, sp
        try:
            yield
        finally:
            self.visit, self.sp = None, SequenceParallel()
            self.lengths.clear()

    def own_places(self, streams: Streams) -> tuple[int, ...]:
        """Returns how many places in dim 1 of each stream of a block's tokens are not padding."""
        names = (LATENTS, TEXT)[: len(streams)]
        return tuple(self._own(stream.shape[1], name) for stream, name in zip(streams, names, strict=True))

    def _own(self, part: int, name: str) -> int:
        if name in self.lengths:
            return self.sp.own_size(self.lengths[name])
        # Not split: every rank has all of it, and one of them counts it.
        return part if self.sp.axis.rank == 0 else 0


class BroadcastModule(nn.Module):
    """A site around a module that returns a tensor, or a tuple of tensors (streams).

    `kept`: what to hand out instead of computing. `wanted`: whether what is computed is to be left in `output`. All three
    are set for one call of the block, by the block; outside of it the site keeps nothing.
    """

    def __init__(self, module: nn.Module, site: str) -> None:
        super().__init__()
        self.module = module
        self.site = site
        self.kept: Streams | None = None
        self.wanted = False
        self.output: Streams | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | Streams:
        """Computes the module, or returns what it gave at an earlier step of this branch."""
        if self.kept is not None:
            return _alone(self.kept)
        output = self.module(*args, **kwargs)
        if self.wanted:
            self.output = _streams(output)
        return output

    def forget(self) -> None:
        """Ends the call of the block."""
        self.kept, self.wanted, self.output = None, False, None


@dataclass(frozen=True, slots=True, kw_only=True)
class StackPlace:
    """What a block knows of the whole stack: where its streams are among its arguments, and whether it is at an end.

    `streams`: names of the parameters that take the streams which the block returns, in their order. `read`: how many of the
    first of them the model reads after the last block.
    """

    streams: tuple[str, ...]
    read: int
    is_first: bool
    is_last: bool


class SiteBlock(nn.Module):
    """A block of the library around its sites. Compiling it compiles the library's block alone.

    `place`: in the stack of all blocks of its transformer; None for a block that always runs.
    """

    def __init__(self, block: nn.Module, name: str, sites: Sequence[BroadcastModule], current: CurrentPass) -> None:
        super().__init__()
        self.block = block
        self.name = name
        self.current = current
        self.sites = tuple(sites)
        self.names = tuple(site.site for site in sites)
        self.is_compiled = False
        self.place: StackPlace | None = None
        self.parameter_names = tuple(self.signature.parameters)

    @property
    def signature(self) -> inspect.Signature:
        """What the library's block takes."""
        return inspect.signature(self.block.forward)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the library's block, with the arguments of `torch.compile`."""
        self.block.compile(*args, **kwargs)
        self.is_compiled = True

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | Streams:
        """Returns what the library's block returns, each of its sites computing or reusing as the pass says.

        In a pass without blocks it returns the tokens that it is given, and the last block what stands in.
        """
        current, place = self.current, self.place
        assert current.visit is not None, f"block {self.name} runs outside of a pass"
        if place is None:
            return _alone(self._run(current.visit, args, kwargs))
        if place.is_first:
            read = self._given(args, kwargs, place.streams[: place.read])
            current.runs_blocks = current.visit.begin_blocks(read)
        run = current.runs_blocks
        tokens = self._run(current.visit, args, kwargs) if run else self._given(args, kwargs, place.streams)
        if place.is_last:
            tokens = current.visit.end_blocks(tokens[: place.read]) + tokens[place.read :]
        return _alone(tokens)

    def _given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], names: Sequence[str]) -> Streams:
        return tuple(
            kwargs[name] if name in kwargs else args[self.parameter_names.index(name)] for name in names
        )  # fmt: skip

    def _run(self, visit: Visit, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Streams:
        if self.is_compiled:
            args, kwargs = self._laid_out(args, kwargs)

        def run(reuse: ReuseStreams, wanted: tuple[bool, ...]) -> tuple[Streams, ReuseStreams]:
            for site, kept, want in zip(self.sites, reuse, wanted, strict=True):
                site.kept, site.wanted = kept, want
            try:
                tokens = _streams(self.block(*args, **kwargs))
                return tokens, handed_over([site.output for site in self.sites], wanted)
            finally:
                for site in self.sites:
                    site.forget()

        return visit.run_streams(self.names, run, own=self.current.own_places)

    def _laid_out(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # The first block of a stack gets parts of larger tensors, perhaps by other names than the next one: a graph more.
        given = self.signature.bind(*args, **kwargs)
        return tuple(_dense(x) if isinstance(x, Tensor) else x for x in given.args), given.kwargs


def install_sites(transformer: nn.Module, sites: Sequence[Site], current: CurrentPass) -> tuple[nn.ModuleList, ...]:
    """Puts wrappers in the place of every site's module and of every block with sites. Returns the stacks of these blocks.

    Raises AttributeError naming a site that is not there.
    """
    blocks: dict[str, list[BroadcastModule]] = {}
    for site in sites:
        path, _, name = site.name.rpartition(".")
        parent = transformer.get_submodule(path)
        wrapper = BroadcastModule(transformer.get_submodule(site.name), site.name)
        setattr(parent, name, wrapper)
        blocks.setdefault(path, []).append(wrapper)
    stacks: dict[str, nn.ModuleList] = {}
    for path, wrappers in blocks.items():
        above, _, index = path.rpartition(".")
        stack = transformer.get_submodule(above)
        assert isinstance(stack, nn.ModuleList), f"block {path} is in no list of blocks"
        stack[int(index)] = SiteBlock(stack[int(index)], path, wrappers, current)
        stacks[above] = stack
    return tuple(stacks.values())


def place_blocks(stacks: Sequence[nn.ModuleList], streams: tuple[str, ...], read: int) -> None:
    """Tells all blocks of a transformer, in running order, where they are, so that passes can leave all of them out.

    `streams`, `read`: those of `StackPlace`. Raises ValueError naming a block without sites, or a stream that one does not
    take.
    """
    blocks = [block for stack in stacks for block in stack]
    for number, block in enumerate(blocks):
        if not isinstance(block, SiteBlock):
            raise ValueError(f"{type(block).__name__} number {number} has no sites, so it cannot be left out")
        if absent := [name for name in streams if name not in block.parameter_names]:
            raise ValueError(f"block {block.name} takes no {absent[0]}, it takes {', '.join(block.parameter_names)}")
        block.place = StackPlace(
            streams=streams, read=read, is_first=number == 0, is_last=number == len(blocks) - 1
        )  # fmt: skip


def _streams(output: Tensor | Sequence[Tensor]) -> Streams:
    return (output,) if isinstance(output, torch.Tensor) else tuple(output)


def _alone(streams: Streams) -> Tensor | Streams:
    return streams if len(streams) > 1 else streams[0]


def _dense(x: Tensor) -> Tensor:
    # A part of a row alone counts as contiguous, but has the strides of the whole, by which a graph is chosen.
    return x.contiguous().flatten().view(x.shape)
