"""Attention over tokens that several ranks hold, and the hooks that split a transformer's passes."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pab.library.broadcast_module import LATENTS, CurrentPass
from pab.library.sequence import library_plan
from pab.library.sequence_hooks import ModuleSplits, Split, install_splits
from pab.parallel.mesh import Axis, SequenceParallel, open_group
from pab.parallel.ulysses import ulysses_attention
from pab.weights.checkpoint import CheckpointError
from tests.ranks import run_on_ranks

STREAMS = ([7, 5], [6, 3], [1, 1], [10])
HEADS = 4


def whole_attention(lengths: list[int]) -> tuple[list[Tensor], Tensor, Tensor]:
    """Queries, keys and values, a mask that leaves the last two tokens out, and the result."""
    generator = torch.Generator().manual_seed(len(lengths))
    qkv = [torch.randn(2, sum(lengths), HEADS, 6, generator=generator) for _ in range(3)]
    mask = torch.arange(sum(lengths))[None, None, None] < max(1, sum(lengths) - 2)
    q, k, v = (x.transpose(1, 2) for x in qkv)
    return qkv, mask, F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def attend_on_ranks() -> list[float]:
    """Largest difference of each case, every stream split by itself; padding holds numbers that would be seen."""
    sp = open_group(dp=1, cfg=1, sp=3, device=torch.device("cpu")).sp
    differences = []
    for lengths in STREAMS:
        qkv, mask, expected = whole_attention(lengths)
        mine = []
        for x in qkv:
            parts = [sp.split(stream + 100, 1) - 100 for stream in x.split(lengths, dim=1)]
            mine.append(torch.cat(parts, dim=1))
        out = ulysses_attention(*mine, lengths=lengths, sp=sp, mask=mask)
        widths = [-(-length // 3) for length in lengths]
        streams = [
            sp.gather(stream, 1, length) for stream, length in zip(out.split(widths, dim=1), lengths, strict=True)
        ]
        differences.append((torch.cat(streams, dim=1) - expected).abs().max().item())
    return differences


def test_attention_over_several_streams_of_three_ranks_is_that_of_one():
    for differences in run_on_ranks(3, attend_on_ranks):
        assert max(differences) < 1e-4, "padding holds -100, numbers that were shifted by 100 and back are off by 1e-5"


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
    assert seen[0].tolist() == [[13.0, 10.0]], "the second half, a zero behind it; the input of other dims is whole"
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
