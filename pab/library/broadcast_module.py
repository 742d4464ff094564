"""Broadcast sites in a transformer that somebody else wrote: wrappers around its attention and MLP modules.

A wrapper asks the pass that runs now whether its module computes or a kept output stands in. What is kept is the
module's own output: a gate that the block puts on it is the current step's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pab.broadcast.sites import Site
from pab.broadcast.state import Visit
from pab.parallel.mesh import SequenceParallel


@dataclass(slots=True)
class CurrentPass:
    """Tells what is put into one loaded model which pass runs. Owned by that model, empty between passes.

    `sp`: the ranks that share the pass. `lengths`: of its streams of tokens before they were split, by name.
    """

    visit: Visit | None = None
    sp: SequenceParallel = field(default_factory=SequenceParallel)
    lengths: dict[str, int] = field(default_factory=dict)

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


class BroadcastModule(nn.Module):
    """A site around a module that returns a tensor, or a tuple of tensors (streams)."""

    def __init__(self, module: nn.Module, site: str, current: CurrentPass) -> None:
        super().__init__()
        self.module = module
        self.site = site
        self.current = current

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...]:
        """Computes the module, or returns what it gave at an earlier step of this branch."""
        visit = self.current.visit
        assert visit is not None, f"site {self.site} runs outside of a pass"
        kept = visit.reuse_streams(self.site)
        if kept is not None:
            visit.keep_streams(self.site, None)
            return kept if len(kept) > 1 else kept[0]
        output = self.module(*args, **kwargs)
        visit.keep_streams(self.site, (output,) if isinstance(output, torch.Tensor) else tuple(output))
        return output


def install_sites(transformer: nn.Module, sites: Sequence[Site], current: CurrentPass) -> None:
    """Puts a wrapper in the place of every site's module. Raises AttributeError naming a site that is not there."""
    for site in sites:
        path, _, name = site.name.rpartition(".")
        parent = transformer.get_submodule(path)
        setattr(parent, name, BroadcastModule(transformer.get_submodule(site.name), site.name, current))
