"""Fused operations of the library's blocks and decoders: each against its plain twin, and what they do to a clip."""

from pathlib import Path

import pytest
import torch

from pab.kernels import flash3, flash3_float8, pixel_norm, rotated_norm
from pab.kernels.float8 import Float8Error
from pab.parallel.mesh import NodeGroup
from tests.pab.conftest import TinyWeights
from tests.pab.library_worlds import WORLDS
from tests.pab.test_kernels import close, precisions, random


@pytest.fixture(scope="module")
def weights(tiny_weights: TinyWeights) -> Path:
    return tiny_weights("wan", "wan22_5b", "ltx2")


@precisions
@pytest.mark.parametrize(("heads", "head_dim"), [(2, 16), (3, 24)])
@pytest.mark.parametrize("every_head", [True, False])
def test_norm_and_rotation_in_one_kernel_equal_their_twin(
    heads: int, head_dim: int, every_head: bool, dtype: torch.dtype, bound: float
) -> None:
    from pab.kernels.gpu import rotated_norm as gpu

    rows, places, dim = 2, 5, heads * head_dim
    x, weight = random(rows, places, dim, dtype=dtype), random(dim, dtype=dtype, seed=1) / 4 + 1
    shape = (1, places, 1, head_dim) if every_head else (rows, places, dim)
    rotation = random(*shape, dtype=torch.float32, seed=2), random(*shape, dtype=torch.float32, seed=3)
    plain = rotated_norm.plain(x, weight, rotation, heads=heads, eps=1e-6)
    close(gpu.launch(x, weight, *rotation, heads=heads, eps=1e-6, bound=None), plain, bound)
    largest = rotated_norm.norm_bound(weight) * 5
    # The interpreter rounds to 8-bit floats without carrying, so values are looked at before that.
    wide = gpu.launch(x, weight, *rotation, heads=heads, eps=1e-6, bound=largest, eight=torch.float32)
    close(wide * largest / rotated_norm.LARGEST, plain.float(), bound)
    assert gpu.launch(x, weight, *rotation, heads=heads, eps=1e-6, bound=largest).dtype == rotated_norm.FLOAT8


def test_no_token_exceeds_the_bound_of_its_norm() -> None:
    weight = random(24, dtype=torch.float32, seed=1)
    x = torch.zeros(1, 2, 24)
    x[0, 0, int(weight.abs().argmax())] = -1e4
    angles = random(1, 2, 1, 12, dtype=torch.float32)
    rotation = angles.cos(), angles.sin()
    found = rotated_norm.plain(x, weight, rotation, heads=2, eps=1e-6).abs().max()
    bound = rotated_norm.norm_bound(weight)
    assert found <= bound
    still = torch.ones(1, 2, 1, 12), torch.zeros(1, 2, 1, 12)
    assert rotated_norm.plain(x, weight, still, heads=2, eps=1e-6).abs().max() > 0.999 * bound, (
        "it is no larger than needed"
    )


@precisions
@pytest.mark.parametrize("shape", [(1, 12, 2, 3, 5), (2, 96, 4, 3)])
@pytest.mark.parametrize("silu", [True, False])
def test_norm_of_pixels_equals_its_twin(shape: tuple[int, ...], silu: bool, dtype: torch.dtype, bound: float) -> None:
    from pab.kernels.gpu import pixel_norm as gpu

    x, weight = random(*shape, dtype=dtype), random(shape[1], dtype=dtype, seed=1)
    x[:, :, 0] = 0  # a pixel of no length stays at zero
    found = gpu.launch(x, weight, silu=silu, smallest=pixel_norm.SMALLEST_NORM)
    close(found, pixel_norm.plain(x, weight, silu=silu), bound)
    form = torch.channels_last_3d if x.dim() == 5 else torch.channels_last
    assert found.is_contiguous(memory_format=form)


def test_keys_beyond_those_used_are_not_attended_to() -> None:
    q, k, v = (random(2, 6, 2, 8, dtype=torch.float32, seed=seed) for seed in range(3))
    used = torch.tensor([4, 6], dtype=torch.int32, device=q.device)
    found = flash3.plain(q, k, v, used)
    close(found[:1], flash3.plain(q[:1], k[:1, :4], v[:1, :4]), 1e-6)
    close(found[1:], flash3.plain(q[1:], k[1:], v[1:]), 1e-6)


def test_attention_of_8_bit_floats_is_near_the_other() -> None:
    q, k, v = (random(1, 40, 2, 16, dtype=torch.float32, seed=seed) for seed in range(3))
    bound = torch.tensor(8.0, device=q.device)
    eight = (rotated_norm.to_float8(x, bound) for x in (q, k))
    found, exact = flash3_float8.fused(*eight, v, (bound, bound)), flash3.plain(q, k, v)
    assert 0 < (found - exact).norm() / exact.norm() < 0.06


def test_a_machine_without_8_bit_attention_is_told_what_it_lacks() -> None:
    with pytest.raises(
        Float8Error, match=r"attention=float8: A100 has .* 8\.0, needs 9\.0 \(Hopper\); .*--attention auto"
    ):
        flash3_float8.check_gpu("A100", (8, 0), installed=True)
    with pytest.raises(Float8Error, match="fa3-fwd is not installed on this node"):
        flash3_float8.check_gpu("H100", (9, 0), installed=False)


@pytest.mark.parametrize("name", ["wan", "wan22_5b", "ltx2"])
def test_fast_decoding_differs_by_less_than_one_of_255(weights: Path, name: str) -> None:
    model, plain = WORLDS[name].load(weights), WORLDS[name].load(weights)
    model.use_fast_decode()
    request = WORLDS[name].clip()
    latents = torch.randn(1, *model.latent_shape(request), generator=torch.Generator().manual_seed(0))
    ours, theirs = (each.decode(latents, request, NodeGroup()).fetch() for each in (model, plain))
    assert ours.shape == theirs.shape
    off = (ours.float() - theirs.float()).abs()
    assert 0 < off.mean() < 1
