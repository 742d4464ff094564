"""Attention over tokens that several ranks hold, and the hooks that split a transformer's passes."""

from functools import cache
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pab.library.broadcast_module import LATENTS, CurrentPass
from pab.library.sequence import library_plan
from pab.library.sequence_hooks import ModuleSplits, Split, install_splits
from pab.parallel.mesh import Axis, SequenceParallel, open_group
from pab.parallel.parts import even_parts, sent_elements
from pab.parallel.ulysses import ulysses_attention
from pab.weights.checkpoint import CheckpointError
from tests.ranks import run_on_ranks

STREAMS = ([7, 5], [6, 3], [1, 1], [10], [2, 9, 4])
"""Lengths of streams: odd ones, such that ranks divide, and fewer tokens than ranks."""
HEADS, CHANNELS, ROWS = (4, 3), 6, 2
RANKS = (2, 3, 4)
CASES = [(lengths, heads, masked) for lengths in STREAMS for heads in HEADS for masked in (True, False)]


def whole_attention(lengths: list[int], heads: int, *, masked: bool) -> tuple[list[Tensor], Tensor | None, Tensor]:
    """Queries, keys and values, a mask that leaves the last two tokens out, and the result."""
    generator = torch.Generator().manual_seed(len(lengths))
    qkv = [torch.randn(ROWS, sum(lengths), heads, CHANNELS, generator=generator) for _ in range(3)]
    mask = torch.arange(sum(lengths))[None, None, None] < max(1, sum(lengths) - 2) if masked else None
    q, k, v = (x.transpose(1, 2) for x in qkv)
    return qkv, mask, F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def attend_on_ranks() -> list[tuple[float, int]]:
    """Largest difference of each case, every stream split by itself, and the bytes that this rank sent.

    Padding holds numbers that would be seen.
    """
    sp = open_group(dp=1, cfg=1, sp=torch.distributed.get_world_size(), device=torch.device("cpu")).sp
    found = []
    for lengths, heads, masked in CASES:
        qkv, mask, expected = whole_attention(lengths, heads, masked=masked)
        mine = []
        for x in qkv:
            parts = [sp.split(stream + 100, 1) - 100 for stream in x.split(lengths, dim=1)]
            mine.append(torch.cat(parts, dim=1))
        before = sp.axis.exchanges.snapshot()
        out = ulysses_attention(*mine, lengths=lengths, sp=sp, mask=mask)
        sent = sp.axis.exchanges.since(before)
        assert sent.all_to_alls == 2
        widths = [sp.parts(length)[sp.axis.rank] for length in lengths]
        streams = [
            sp.gather(stream, 1, length) for stream, length in zip(out.split(widths, dim=1), lengths, strict=True)
        ]
        found.append(((torch.cat(streams, dim=1) - expected).abs().max().item(), sent.all_to_all_bytes))
    return found


@cache
def attended(ranks: int) -> list[list[tuple[float, int]]]:
    return run_on_ranks(ranks, attend_on_ranks)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_over_streams_of_several_ranks_is_that_of_one(ranks, case):
    lengths, heads, _ = case
    places = [sum(parts) for parts in zip(*(even_parts(length, ranks) for length in lengths), strict=True)]
    parts = even_parts(heads, ranks)
    for rank, of_rank in enumerate(attended(ranks)):
        difference, num_bytes = of_rank[CASES.index(case)]
        assert difference < 1e-4, "padding holds -100, numbers that were shifted by 100 and back are off by 1e-5"
        there, back = sent_elements(places, parts, rank, 3 * ROWS), sent_elements(parts, places, rank, ROWS)
        assert num_bytes == 4 * CHANNELS * (there + back)


def attend_by_place() -> Tensor:
    """Places of three tokens each, of which the ranks have different numbers."""
    sp = open_group(dp=1, cfg=1, sp=2, device=torch.device("cpu")).sp
    qkv, _, expected = whole_attention([15], 3, masked=False)
    mine = [sp.split(x, 1, multiple=3) for x in qkv]
    out = ulysses_attention(*mine, lengths=[5], sp=sp, tokens_per_place=3)
    return sp.gather(out, 1, 15, multiple=3) - expected


def test_places_of_several_tokens_stay_together():
    for difference in run_on_ranks(2, attend_by_place):
        assert difference.abs().max() < 1e-5


class Block(nn.Module):
    def forward(self, hidden_states, other=None):
        return hidden_states + (0 if other is None else other)


class Outline(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.last = Block(), Block()

    def forward(self, x, other=None):
        return self.last(self.block(x, other=other))


def test_hooks_split_what_a_module_takes_and_gather_the_end():
    model, current = Outline(), CurrentPass()
    plan = {
        "block": ModuleSplits(inputs={LATENTS: Split(dim=1, num_dims=2), "other": Split(dim=0, num_dims=1)}),
        "last": ModuleSplits(gather_dim=1),
    }
    install_splits(model, plan, current)
    seen = []
    model.last.register_forward_pre_hook(lambda _module, args: seen.append(args[0].clone()))
    gathered = []

    class Gathered(SequenceParallel):
        def gather(self, x: Tensor, dim: int, size: int) -> Tensor:
            gathered.append((dim, size))
            return x

    current.sp = Gathered(axis=Axis(size=2, rank=1))
    model(torch.tensor([[1.0, 2.0, 3.0]]), other=torch.tensor([[10.0]]))
    assert seen[0].tolist() == [[13.0]], "the second rank's one place of three; the input of other dims is whole"
    assert gathered == [(1, 3)]
    with pytest.raises(ValueError, match=r"module 'block' takes no text, it takes hidden_states, other"):
        install_splits(model, {"block": ModuleSplits(inputs={"text": Split(dim=1, num_dims=2)})}, current)
    with pytest.raises(AttributeError, match="blocks"):
        install_splits(model, {"blocks": ModuleSplits(gather_dim=1)}, current)


def test_a_library_s_plan_is_read_without_its_text():
    def split(dim: int, dims: int) -> SimpleNamespace:
        return SimpleNamespace(split_dim=dim, expected_dims=dims)

    told = {
        "": {LATENTS: split(1, 3), "encoder_hidden_states": split(1, 3)},
        "rope": {0: split(1, 4)},
        "blocks.*": {"encoder_hidden_states": split(1, 3)},
        "proj_out": SimpleNamespace(gather_dim=1),
    }
    assert library_plan(SimpleNamespace(_cp_plan=told)) == {
        "": ModuleSplits(inputs={LATENTS: Split(dim=1, num_dims=3)}),
        "rope": ModuleSplits(outputs={0: Split(dim=1, num_dims=4)}),
        "proj_out": ModuleSplits(gather_dim=1),
    }


@pytest.mark.parametrize(("told", "why"), [(None, "is not there"), ({"out": [None]}, r"has \[None\] at module 'out'")])
def test_a_plan_that_cannot_be_followed_is_refused_by_name(told, why):
    published = type("NewTransformer", (), {"_cp_plan": told})
    with pytest.raises(CheckpointError, match=rf"the context-parallel plan of NewTransformer {why}; install a version"):
        library_plan(published)
