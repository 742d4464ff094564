"""One compiled graph per step pattern: each kind of block is compiled once for what it reuses and what it keeps.

Which sites reuse and which outputs are kept reach a block as None-or-tensor and as booleans, so they are constants of
the graph: a plan's few patterns give a few graphs, shared by all blocks of a stack, and nothing is recompiled after
the first clip. Text length is a dynamic size, so prompts of any length share the graphs.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pab.execution.choice import Execution
from pab.model import DecodesFast, UsesFloat8, UsesFloat8Attention, UsesKernels, VideoModel

# Dynamo's own limit of 8 would silently fall back to eager. One clip's plan needs at most 2 stacks x 27 states of 3 sites.
MAX_GRAPHS = 256
GRAPHS_TO_FORGET = 128
"""With more graphs than this a clip starts from none: each call of a block looks through all graphs of its kind."""
INDUCTOR_OPTIONS: Mapping[str, bool] = {"deterministic": True}
"""Inductor cuts a sum by rule, not in the way that was fastest when it tried several.

By timing, each rank, node and empty cache could add up in another order, and the same clip would differ by rounding: in
8-bit floats by 15 % of the latents (docs/quality.md, Kernels by rule).
"""


class CompileError(RuntimeError):
    """Blocks cannot be compiled on this machine; the message says what is missing."""


def compile_blocks(
    stacks: Sequence[nn.ModuleList], *, backend: str = "inductor", options: Mapping[str, bool] = INDUCTOR_OPTIONS
) -> None:
    """Compiles the forward of every block in place. Parameters and key names stay as they are. `options`: inductor's.

    Raises CompileError when inductor finds no C compiler, which it needs even for GPU kernels.
    """
    if backend == "inductor" and not any(shutil.which(name) for name in ("gcc", "clang", "cc")):
        raise CompileError(
            "compiled blocks need a C compiler (gcc or clang) on every node; install one, or --compile off"
        )
    given = dict(options) if backend == "inductor" else None
    for stack in stacks:
        for block in stack:
            block.compile(fullgraph=True, backend=backend, options=given)


def run_as(model: VideoModel, execution: Execution, *, backend: str = "inductor") -> None:
    """Has a loaded model run as an execution says, once and for all. Raises CompileError.

    Its family says which of the operations it has.
    """
    if execution.kernels:
        cast(UsesKernels, model).use_kernels()
    if execution.linears == "float8":
        cast(UsesFloat8, model).use_float8()
    if execution.attention == "float8":
        cast(UsesFloat8Attention, model).use_float8_attention()
    if execution.decode == "fast":
        cast(DecodesFast, model).use_fast_decode()
    if execution.compiled:
        compile_blocks(model.block_stacks, backend=backend)
        if execution.decode == "fast":
            compile_blocks(cast(DecodesFast, model).decoder_stacks, backend=backend)


@contextlib.contextmanager
def many_graphs() -> Iterator[None]:
    """Lets one block class have as many graphs as the patterns need, and fails loudly beyond that."""
    with torch._dynamo.config.patch(
        recompile_limit=MAX_GRAPHS,
        accumulated_recompile_limit=16 * MAX_GRAPHS,
        fail_on_recompile_limit_hit=True,
        automatic_dynamic_shapes=False,  # a new clip size gets fast static graphs of its own
    ):
        yield


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Has products and convolutions of float32 compute in float32, also on GPUs that would round their factors (TF32)."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextlib.contextmanager
def executing(execution: Execution, *, precision: str | None = None) -> Iterator[None]:
    """Runs what is inside as `execution` says: with room for the graphs, and its preferred attention kernel first.

    `precision`: the model's. In "float32" nothing is rounded to less, so that videos look as on a CPU.
    """
    with contextlib.ExitStack() as stack:
        if precision == "float32":
            stack.enter_context(exact_float32())
        if execution.compiled:
            stack.enter_context(many_graphs())
        if execution.attention == "cudnn":
            rest = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
            stack.enter_context(sdpa_kernel([SDPBackend.CUDNN_ATTENTION, *rest], set_priority=True))
        yield


def any_length(tensor: Tensor, dim: int) -> Tensor:
    """Marks a dim whose length changes from clip to clip, so that it does not become a constant of a graph."""
    # The first `compile` imports dynamo, which takes 1.5 s of a core: not for a mark that no graph will read.
    if "torch._dynamo" in sys.modules:
        torch._dynamo.mark_dynamic(tensor, dim)
    return tensor


def graphs_compiled() -> int:
    """Returns how many graphs have been compiled in this process so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What compiling has cost. `cache_hits`: graphs whose kernels were found ready on disk."""

    graphs: int = 0
    seconds: float = 0.0
    cache_hits: int = 0
    cache_misses: int = 0

    def plus(self, other: Compiled) -> Compiled:
        """Returns both together."""
        return Compiled(
            graphs=self.graphs + other.graphs,
            seconds=self.seconds + other.seconds,
            cache_hits=self.cache_hits + other.cache_hits,
            cache_misses=self.cache_misses + other.cache_misses,
        )

    def since(self, earlier: Compiled) -> Compiled:
        """Returns what was compiled after an earlier count."""
        return Compiled(
            graphs=self.graphs - earlier.graphs,
            seconds=self.seconds - earlier.seconds,
            cache_hits=self.cache_hits - earlier.cache_hits,
            cache_misses=self.cache_misses - earlier.cache_misses,
        )


class Graphs:
    """The graphs that this process holds, and what compiling them has cost since this object was made."""

    def __init__(self) -> None:
        self._held_from = graphs_compiled()
        self._before = _counted()
        self._seconds_forgotten = 0.0

    def so_far(self) -> Compiled:
        """Returns what was compiled since this object was made."""
        found = _counted().since(self._before)
        return replace(found, seconds=found.seconds + self._seconds_forgotten)

    def make_room(self, *, most: int = GRAPHS_TO_FORGET) -> bool:
        """Drops all graphs if there are more than `most`; returns whether it did. Their kernels stay in the cache on disk.

        A job with clips of many sizes would otherwise reach MAX_GRAPHS, and look through ever more graphs at every call.
        """
        if graphs_compiled() - self._held_from <= most:
            return False
        before_s = _counted().seconds
        torch._dynamo.reset()
        # Torch begins to count seconds anew, graphs it goes on counting.
        self._seconds_forgotten += before_s - _counted().seconds
        self._held_from = graphs_compiled()
        return True


def _counted() -> Compiled:
    utils = torch._dynamo.utils
    inductor = utils.counters["inductor"]
    return Compiled(
        graphs=graphs_compiled(),
        seconds=float(utils.calculate_time_spent()["total_wall_time"]),
        cache_hits=int(inductor["fxgraph_cache_hit"]),
        cache_misses=int(inductor["fxgraph_cache_miss"]),
    )
