"""The exchanges of ranks: what was split comes back as it was, in as few bytes as there are, whatever divides by what."""

from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pab.kernels.float8 import FLOAT8
from pab.parallel.exchange import packed
from pab.parallel.mesh import NodeGroup, SequenceParallel, open_group
from pab.parallel.parts import even_parts, largest_part, sent_elements
from tests.ranks import run_on_ranks

SIZES = ((15, 10), (5, 7), (6, 9), (1, 2), (4, 1), (8, 12))
"""Frames and patches: odd ones, fewer than ranks, and such that all ranks divide."""
ROWS, CHANNELS = 2, 3
RANKS = (2, 3, 4)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("size", [1, 2, 5, 15, 16, 1590])
def test_parts_are_as_even_as_can_be_and_leave_no_rank_without_a_place(ranks, size):
    parts = even_parts(size, ranks)
    assert sum(parts) == max(size, ranks)
    assert max(parts) - min(parts) <= 1
    assert all(earlier >= later for earlier, later in pairwise(parts))
    assert largest_part(size, ranks) == max(parts) == -(-size // ranks)
    assert even_parts(2 * size - 1, ranks, multiple=2) == tuple(2 * part for part in parts)


def frames_of(frames: int, patches: int) -> Tensor:
    return torch.arange(1.0, 1 + ROWS * frames * patches * CHANNELS).reshape(ROWS, frames, patches, CHANNELS)


def exchange_all() -> list[tuple[Tensor, Tensor, int, int]]:
    """On a rank, per size: its patches of all frames, the whole again, and how much was sent, in all-to-alls and bytes."""
    group = open_group(dp=1, cfg=1, sp=torch.distributed.get_world_size(), device=torch.device("cpu"))
    return [exchange_one(group.sp, frames_of(*size)) for size in SIZES]


def exchange_one(sp: SequenceParallel, whole: Tensor) -> tuple[Tensor, Tensor, int, int]:
    _, frames, patches, _ = whole.shape
    before, places = sp.axis.exchanges.snapshot(), sp.parts(frames)
    mine = sp.split(whole, 1)
    by_patch = sp.all_to_all([mine.transpose(0, 1)], dim=2, places=places)
    assert by_patch.is_contiguous()
    back = sp.all_to_all_back(by_patch[:, 0], dim=2, size=patches, places=places, front=1)
    assert torch.equal(back, mine)
    sent = sp.axis.exchanges.since(before)
    return by_patch[:frames, 0], sp.gather(back, 1, frames), sent.all_to_alls, sent.all_to_all_bytes


@cache
def exchanged(ranks: int) -> list[list[tuple[Tensor, Tensor, int, int]]]:
    return run_on_ranks(ranks, exchange_all)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_split_moves_to_another_dim_and_back_in_the_bytes_that_are_foretold(ranks, size):
    frames, patches = size
    whole, found = frames_of(*size), [of_rank[SIZES.index(size)] for of_rank in exchanged(ranks)]
    parts = torch.cat([by_patch for by_patch, *_ in found], dim=2).transpose(0, 1)
    assert torch.equal(parts[:, :, :patches], whole)
    assert not parts[:, :, patches:].any()
    by_frame, by_patch = even_parts(frames, ranks), even_parts(patches, ranks)
    for rank, (_, again, all_to_alls, num_bytes) in enumerate(found):
        assert torch.equal(again, whole)
        assert all_to_alls == 2
        there, back = (
            sent_elements(*pair, rank, ROWS * CHANNELS) for pair in ((by_frame, by_patch), (by_patch, by_frame))
        )
        assert num_bytes == 4 * (there + back)


@pytest.mark.parametrize(("dim", "parts"), [(1, (1, 1)), (2, (2, 1)), (3, (1, 1, 1, 1)), (2, (1, 1, 1))])
def test_what_is_sent_is_packed_part_by_part(dim, parts):
    xs = [torch.randn(4, 3, 2, 4).transpose(1, 2), torch.randn(4, 2, 3, 4)]
    blocks = zip(*(x.split(parts, dim) for x in xs), strict=True)
    wanted = torch.cat([torch.stack(block, dim=1).flatten() for block in blocks])
    assert torch.equal(packed(xs, dim, parts), wanted)


def test_what_lies_in_order_is_sent_without_a_copy():
    x = torch.randn(4, 3)
    assert packed([x], 0, (3, 1)).data_ptr() == x.data_ptr()


def exchange_eight_bits() -> Tensor:
    sp = open_group(dp=1, cfg=1, sp=2, device=torch.device("cpu")).sp
    mine = sp.split(torch.arange(8.0).reshape(4, 2), 0).to(FLOAT8)
    return sp.all_to_all([mine], dim=1, places=sp.parts(4)).float()


def test_eight_bit_floats_travel_as_they_are():
    first, second = run_on_ranks(2, exchange_eight_bits)
    assert torch.cat([first, second], dim=2)[:, 0].tolist() == torch.arange(8.0).reshape(4, 2).tolist()


def axes():
    group = open_group(dp=2, cfg=2, sp=1, device=torch.device("cpu"))
    value = torch.tensor([float(group.rank)])
    return [axis.all_gather(value)[0].item() for axis in (group.dp, group.cfg, group.clip, group.sp.axis)]


def test_axes_lie_dp_outermost_and_sp_innermost():
    assert run_on_ranks(4, axes) == [[0, 0, 0, 0], [1, 0, 0, 1], [0, 2, 2, 2], [1, 2, 2, 3]]


def test_a_group_of_one_passes_tensors_through():
    sp, x = NodeGroup().sp, torch.ones(2, 3, 4)
    assert sp.split(x, 1) is x
    assert sp.gather(x, 1, 3) is x
    assert sp.own_size(3) == 3
    assert sp.own_size(3, 2) == 2
