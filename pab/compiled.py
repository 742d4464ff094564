"""One compiled graph per step pattern: each kind of block is compiled once for what it reuses and what it keeps.

Which sites reuse and which outputs are kept reach a block as None-or-tensor and as booleans, so they are constants of
the graph: a plan's few patterns give a few graphs, shared by all blocks of a stack, and nothing is recompiled after
the first clip. Text length is a dynamic size, so prompts of any length share the graphs.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn

# Two stacks x four reuse patterns each x what is kept; dynamo's own limit of 8 would silently fall back to eager.
MAX_GRAPHS = 96


def compile_blocks(stacks: list[nn.ModuleList], *, backend: str = "inductor") -> None:
    """Compiles the forward of every block in place. Parameters and key names stay as they are."""
    for stack in stacks:
        for block in stack:
            block.compile(fullgraph=True, backend=backend)


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


def any_length(tensor: Tensor, dim: int) -> Tensor:
    """Marks a dim whose length changes from clip to clip, so that it does not become a constant of a graph."""
    # The first `compile` imports dynamo, which takes 1.5 s of a core: not for a mark that no graph will read.
    if "torch._dynamo" in sys.modules:
        torch._dynamo.mark_dynamic(tensor, dim)
    return tensor


def graphs_compiled() -> int:
    """Returns how many graphs have been compiled in this process so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
