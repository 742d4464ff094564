"""The ranks of one node group and their collectives: sequence parallelism, guidance parallelism, data parallelism.

Parallel state is one frozen object that is passed in. A group of one rank has the same type: its collectives return their
argument. Each collective counts the bytes that it sends (DSP, arXiv 2403.10266, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Traffic:
    """Collectives of one rank. Bytes do not include what a rank keeps for itself."""

    all_to_alls: int = 0
    all_to_all_bytes: int = 0
    gathers: int = 0
    gather_bytes: int = 0

    def since(self, earlier: Traffic) -> Traffic:
        """Returns what was counted since an earlier count."""
        return Traffic(
            self.all_to_alls - earlier.all_to_alls,
            self.all_to_all_bytes - earlier.all_to_all_bytes,
            self.gathers - earlier.gathers,
            self.gather_bytes - earlier.gather_bytes,
        )


_ALL_TO_ALLS, _GATHERS = 0, 2
"""Index of each kind's number of collectives in the counts; the next place has their bytes."""


@torch.library.custom_op("pab::count_collective", mutates_args=("counts",))
def _count(counts: Tensor, kind: int, num_bytes: int) -> None:
    counts[kind] += 1
    counts[kind + 1] += num_bytes


def _no_counts() -> Tensor:
    with torch.inference_mode(mode=False):  # it is changed inside and outside of inference mode
        return torch.zeros(4, dtype=torch.int64)


@dataclass(frozen=True, slots=True)
class TrafficMeter:
    """Counts the collectives of one axis.

    The counts are a tensor on the CPU that a custom operation changes. Plain integers would be constants of a compiled
    block, which would then be compiled again for every new value.
    """

    counts: Tensor = field(default_factory=_no_counts)

    def snapshot(self) -> Traffic:
        """Returns what was counted so far."""
        return Traffic(*self.counts.tolist())

    def since(self, earlier: Traffic) -> Traffic:
        """Returns what was counted since an earlier snapshot."""
        return self.snapshot().since(earlier)

    def all_to_all(self, num_bytes: int) -> None:
        """Counts one all-to-all, which sends `num_bytes`."""
        _count(self.counts, _ALL_TO_ALLS, num_bytes)

    def gather(self, num_bytes: int) -> None:
        """Counts one gather, which sends `num_bytes`."""
        _count(self.counts, _GATHERS, num_bytes)


def padded(size: int, parts: int) -> int:
    """Returns the smallest multiple of `parts` that is at least `size`."""
    return -(-size // parts) * parts


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
    traffic: TrafficMeter = field(default_factory=TrafficMeter)

    def all_gather(self, x: Tensor) -> list[Tensor]:
        """Returns every rank's tensor, in rank order. All must have the same shape."""
        if self.size == 1:
            return [x]
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x, group=self.group)
        self.traffic.gather(x.numel() * x.element_size() * (self.size - 1))
        return parts

    def gather_on_root(self, x: Tensor) -> list[Tensor] | None:
        """Returns every rank's tensor in rank order on the axis' rank 0, None elsewhere. All must have the same shape."""
        if self.size == 1:
            return [x]
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(x, parts, group=self.group, group_dst=0)
        self.traffic.gather(0 if self.rank == 0 else x.numel() * x.element_size())
        return parts


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceParallel:
    """Splits one pass over the ranks of an axis and moves the split from one tensor dim to another.

    A dim that does not divide evenly is padded with zeros at its end. The caller that undoes the split gives the true
    size, and the padding is cut off.
    """

    axis: Axis = field(default_factory=Axis)

    @property
    def size(self) -> int:
        """How many ranks share one pass."""
        return self.axis.size

    def split(self, x: Tensor, dim: int, *, multiple: int = 1) -> Tensor:
        """Returns this rank's part of `dim`. All parts have one length, a multiple of `multiple`; zeros pad the end."""
        if self.size == 1:
            return x
        part = padded(x.shape[dim], self.size * multiple) // self.size
        return pad_dim(x, dim, part * self.size).narrow(dim, self.axis.rank * part, part)

    def own_size(self, part: int, size: int) -> int:
        """Returns how many places of this rank's part are not padding. `part`: length of a part, `size`: of the whole dim."""
        return max(0, min(part, size - self.axis.rank * part))

    def gather(self, x: Tensor, dim: int, size: int) -> Tensor:
        """Undoes `split`: returns the whole `dim`, cut to its true `size`, on every rank."""
        if self.size == 1:
            return x
        return torch.cat(self.axis.all_gather(x), dim=dim).narrow(dim, 0, size)

    def all_to_all(self, x: Tensor, *, whole_dim: int, split_dim: int, size: int) -> Tensor:
        """Moves the split from `whole_dim`, whose true length is `size`, to `split_dim`.

        Makes one all-to-all. Returns x itself in a group of one.
        """
        if self.size == 1:
            return x
        assert x.dim() > max(whole_dim, split_dim), "dims count from the front"
        x = pad_dim(x, split_dim, padded(x.shape[split_dim], self.size))
        sent = torch.stack(x.chunk(self.size, dim=split_dim)).contiguous()
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self.axis.group)
        self.axis.traffic.all_to_all(sent.numel() * sent.element_size() * (self.size - 1) // self.size)
        return torch.cat(received.unbind(0), dim=whole_dim).narrow(whole_dim, 0, size)


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
