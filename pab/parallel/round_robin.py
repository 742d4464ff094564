"""Independent pieces of one clip (chunks, frames or tiles of a VAE), computed by its ranks in turn (round robin).

One rank computes a whole piece, as a single rank would, so results do not depend on the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pab.parallel.mesh import Axis

Shape = Sequence[int]


def round_robin(
    compute: Callable[[int], Tensor],
    shapes: Sequence[Shape],
    *,
    like: Tensor,
    axis: Axis,
    idle: Callable[[Sequence[Tensor]], None] | None = None,
) -> list[Tensor]:
    """Returns every piece on every rank; rank r computes pieces r, r + size, ... Collective.

    `shapes`: the shape of each piece, in order. `like`: a tensor with the pieces' dtype and device. `idle`: called with the
    pieces of earlier rounds on a rank that has none in the last one, before it waits for those of the others.
    """
    if axis.size == 1:
        return [compute(index) for index in range(len(shapes))]
    pieces: list[Tensor] = []
    for start in range(0, len(shapes), axis.size):
        if idle is not None and start + axis.rank >= len(shapes):
            idle(pieces)
        flat = _my_piece(compute, shapes, start, like, axis)
        parts = axis.all_gather(flat)
        pieces += [_shaped(part, shape) for part, shape in zip(parts, shapes[start:], strict=False)]
    return pieces


def round_robin_to_root(
    compute: Callable[[int], Tensor], shapes: Sequence[Shape], *, like: Tensor, axis: Axis, to_cpu: bool = True
) -> list[Tensor] | None:
    """Returns every piece on the axis' rank 0, None on the others. Collective.

    With `to_cpu` each round's pieces move to the CPU before the next round: a device holds at most one piece per rank, and
    each round waits for the device. Without it the pieces stay on the device and nothing waits.
    """
    moved: Callable[[Tensor], Tensor] = Tensor.cpu if to_cpu else _as_it_is
    if axis.size == 1:
        return [moved(compute(index)) for index in range(len(shapes))]
    pieces: list[Tensor] = []
    for start in range(0, len(shapes), axis.size):
        flat = _my_piece(compute, shapes, start, like, axis)
        parts = axis.gather_on_root(flat)
        if parts is not None:
            pieces += [moved(_shaped(part, shape)) for part, shape in zip(parts, shapes[start:], strict=False)]
    return pieces if axis.rank == 0 else None


def _as_it_is(piece: Tensor) -> Tensor:
    return piece


def _my_piece(
    compute: Callable[[int], Tensor], shapes: Sequence[Shape], start: int, like: Tensor, axis: Axis
) -> Tensor:  # fmt: skip
    """Returns this rank's piece of a round, flat and padded to the round's largest; only zeros if it has none."""
    sizes = [math.prod(shape) for shape in shapes[start : start + axis.size]]
    flat = torch.zeros(max(sizes), dtype=like.dtype, device=like.device)
    if axis.rank < len(sizes):
        piece = compute(start + axis.rank)
        assert list(piece.shape) == list(shapes[start + axis.rank]), "a piece has the shape that was announced"
        flat[: sizes[axis.rank]] = piece.flatten()
    return flat


def _shaped(flat: Tensor, shape: Shape) -> Tensor:
    return flat[: math.prod(shape)].view(*shape)
