"""The ranks of one node group and their collectives: sequence parallelism, guidance parallelism, data parallelism.

Parallel state is one frozen object that is passed in. A group of one rank has the same type: its collectives return their
argument. Each collective counts the bytes that it sends (DSP, arXiv 2403.10266, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pab.parallel.exchange import Exchanges, exchange, gather
from pab.parallel.parts import even_parts


def pad_dim(x: Tensor, dim: int, size: int) -> Tensor:
    """Returns x with zeros at the end of `dim`, so that this dim has length `size`."""
    missing = size - x.shape[dim]
    if missing == 0:
        return x
    return F.pad(x, [0, 0] * (x.dim() - dim - 1) + [0, missing])


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of the mesh: `size` ranks, of which this one is number `rank`."""

    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None
    exchanges: Exchanges = field(default_factory=Exchanges)

    def __post_init__(self) -> None:
        if self.group is not None:
            self.exchanges.serve(self.group)

    def all_gather(self, x: Tensor) -> list[Tensor]:
        """Returns every rank's tensor, in rank order. All must have the same shape."""
        return [x] if self.size == 1 else gather(self.exchanges, x, self.size)

    def gather_on_root(self, x: Tensor) -> list[Tensor] | None:
        """Returns every rank's tensor in rank order on the axis' rank 0, None elsewhere. All must have the same shape."""
        if self.size == 1:
            return [x]
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(x, parts, group=self.group, group_dst=0)
        self.exchanges.count_gather(0 if self.rank == 0 else x.numel() * x.element_size())
        return parts


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceParallel:
    """Splits one pass over the ranks of an axis and moves the split from one tensor dim to another.

    Parts are as even as can be (`even_parts`); nothing is padded but a dim that has fewer places than there are ranks, with
    zeros at its end. The caller that undoes a split gives the true size, and such padding is cut off.
    """

    axis: Axis = field(default_factory=Axis)

    @property
    def size(self) -> int:
        """How many ranks share one pass."""
        return self.axis.size

    def parts(self, size: int, *, multiple: int = 1) -> tuple[int, ...]:
        """Returns how many places of a dim of `size` each rank has."""
        return even_parts(size, self.size, multiple=multiple)

    def split(self, x: Tensor, dim: int, *, multiple: int = 1) -> Tensor:
        """Returns this rank's part of `dim`, of a length that is a multiple of `multiple`."""
        if self.size == 1:
            return x
        parts, rank = self.parts(x.shape[dim], multiple=multiple), self.axis.rank
        return pad_dim(x, dim, sum(parts)).narrow(dim, sum(parts[:rank]), parts[rank])

    def own_size(self, size: int, first: int | None = None) -> int:
        """Returns how many of the first places of a dim of `size` are this rank's; `first`: how many places, None for all."""
        parts, rank = self.parts(size), self.axis.rank
        return max(0, min(parts[rank], (size if first is None else first) - sum(parts[:rank])))

    def gather(self, x: Tensor, dim: int, size: int, *, multiple: int = 1) -> Tensor:
        """Undoes `split`: returns the whole `dim`, of its true `size`, on every rank."""
        if self.size == 1:
            return x
        parts = self.parts(size, multiple=multiple)
        assert x.shape[dim] == parts[self.axis.rank], f"{x.shape[dim]} places of {size} here, split as {parts}"
        gathered = self.axis.all_gather(pad_dim(x, dim, max(parts)))
        true = [whole.narrow(dim, 0, part) for whole, part in zip(gathered, parts, strict=True)]
        return torch.cat(true, dim=dim).narrow(dim, 0, size)

    def all_to_all(self, xs: Sequence[Tensor], *, dim: int, places: Sequence[int]) -> Tensor:
        """Gives every rank its part of `dim`, and gets the places in dim 0 of all ranks: [sum(places), len(xs), ...].

        `xs`: of one shape; they go as one. `places`: how many each rank has in dim 0, as `parts` says. One copy, and one
        all-to-all. A `dim` that is shorter than there are ranks comes back padded.
        """
        shape, rank = list(xs[0].shape), self.axis.rank
        assert shape[0] == places[rank], f"{shape[0]} places here, of {tuple(places)}"
        parts = self.parts(shape[dim])
        xs = [pad_dim(x, dim, sum(parts)) for x in xs]
        shape[0], shape[dim] = sum(places), parts[rank]
        rest = len(xs) * prod(shape[1:]) // parts[rank]
        received = exchange(
            self.axis.exchanges,
            xs,
            dim=dim,
            parts=parts,
            given=[places[rank] * part * rest for part in parts],
            taken=[place * parts[rank] * rest for place in places],
        )
        return received.view(shape[0], len(xs), *shape[1:])

    def all_to_all_back(
        self, x: Tensor, *, dim: int, size: int, places: Sequence[int], front: int = 0
    ) -> Tensor:  # fmt: skip
        """Undoes `all_to_all` of one tensor: returns this rank's places, and all of `dim`, of its true `size`.

        `front`: where dim 0 is in the result. One all-to-all, and one copy behind it, which a compiled block does together
        with what follows; x itself is copied only if its dim 0 does not lie outermost.
        """
        parts, rank = self.parts(size), self.axis.rank
        shape = [places[rank], *x.shape[1:]]
        rest = prod(shape[1:]) // parts[rank]
        received = exchange(
            self.axis.exchanges,
            [pad_dim(x, 0, sum(places))],
            dim=0,
            parts=places,
            given=[place * parts[rank] * rest for place in places],
            taken=[places[rank] * part * rest for part in parts],
        )
        blocks = []
        for block, part in zip(received.split([places[rank] * part * rest for part in parts]), parts, strict=True):
            shape[dim] = part
            blocks.append(block.view(shape).movedim(0, front))
        # In the result, dim 0 has moved behind those that were in front of it.
        joined = dim - 1 if 0 < dim <= front else dim
        return torch.cat(blocks, dim=joined).narrow(joined, 0, size)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGroup:
    """The ranks of one job: `dp` clips at once, a clip's guidance branches over `cfg` (1 or 2) ranks, a pass over `sp` ranks.

    Ranks are numbered in the order dp, cfg, sp, with sp innermost. `clip` has the cfg x sp ranks that share one clip.
    """

    rank: int = 0
    dp: Axis = field(default_factory=Axis)
    cfg: Axis = field(default_factory=Axis)
    clip: Axis = field(default_factory=Axis)
    sp: SequenceParallel = field(default_factory=SequenceParallel)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def size(self) -> int:
        """Ranks in all."""
        return self.dp.size * self.clip.size

    @property
    def is_clip_root(self) -> bool:
        """Whether this rank writes its clip's video and record."""
        return self.clip.rank == 0


def open_group(*, dp: int, cfg: int, sp: int, device: torch.device) -> NodeGroup:
    """Builds the group's axes over the default process group, which must be initialized when there are several ranks.

    Collective: every rank calls it. Raises ValueError when dp x cfg x sp is not the number of ranks.
    """
    world = dist.get_world_size() if dist.is_initialized() else 1
    if dp * cfg * sp != world:
        raise ValueError(f"mesh dp={dp},cfg={cfg},sp={sp} needs {dp * cfg * sp} ranks, the group has {world}")
    rank = dist.get_rank() if dist.is_initialized() else 0
    mesh = torch.arange(world).reshape(dp, cfg, sp)

    def axis(rows: Tensor) -> Axis:
        # Every rank must create every group, in the same order.
        mine = Axis()
        for row in rows.tolist():
            group = dist.new_group(row) if len(row) > 1 else None
            if rank in row:
                mine = Axis(size=len(row), rank=row.index(rank), group=group)
        return mine

    return NodeGroup(
        rank=rank,
        dp=axis(mesh.permute(1, 2, 0).reshape(-1, dp)),
        cfg=axis(mesh.permute(0, 2, 1).reshape(-1, cfg)),
        clip=axis(mesh.reshape(dp, cfg * sp)),
        sp=SequenceParallel(axis=axis(mesh.reshape(-1, sp))),
        device=device,
    )
