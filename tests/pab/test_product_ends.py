"""What may follow inside of a product gives what follows outside of it: gates, sums, GELU and rounding to 8 bits."""

from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pab.execution.compiled import compile_blocks, graphs_compiled, many_graphs
from pab.families.latte.sites import latte_sites
from pab.families.latte.transformer import Latte
from pab.families.open_sora.stdit3 import ClipShape
from pab.kernels import float8, modulated_norm, product8
from pab.kernels.choice import PLAIN, Kernels
from pab.kernels.float8 import LARGEST, Float8Linear, Rows8
from pab.kernels.product_end import End, ahead, ended
from pab.parallel.mesh import NodeGroup, open_group
from pab.sampling.denoise import Denoised
from tests.pab.noise_worlds import LATTE, WORLDS
from tests.pab.noise_worlds import clip as noise_clip
from tests.pab.test_compiled import block_patterns
from tests.pab.test_kernels import REUSING, SHORT, close, model_with, precisions, random
from tests.pab.worlds import render
from tests.ranks import run_on_ranks

WAYS = {
    "gated": Kernels(gated=True),
    "summed": Kernels(gated=True, summed=True),
    "fused": Kernels(gated=True, summed=True, norm=True, gelu=True, temporal=True),
}
WAYS_OF_8_BITS = {
    "gated": Kernels(gated=True),
    "gelu8": Kernels(gelu8=True),
    "both": Kernels(gated=True, summed=True, gelu8=True),
}


@precisions
@pytest.mark.parametrize("width", [32, 72])
def test_a_norm_may_add_to_its_sum_what_it_does_not_norm(width: int, dtype: torch.dtype, bound: float) -> None:
    x, addend = (random(2, 3, 1, width, dtype=dtype, seed=seed) for seed in range(2))
    shift, scale = (random(1, 1, 1, width, dtype=dtype, seed=seed) for seed in (3, 4))
    bias = random(width, dtype=dtype, seed=5)
    for addends in ((), (addend,), (addend, x)):
        fused, plain = (f(x, addends, shift, scale, bias) for f in (modulated_norm.fused, modulated_norm.plain))
        assert torch.equal(fused[0], plain[0])
        assert fused[0].data_ptr() != x.data_ptr(), "what is written to must not be the block's input"
        close(fused[1], plain[1], bound)
        close(fused[1], modulated_norm.plain(x, addends, shift, scale)[1], bound)


@pytest.mark.parametrize("eight", [False, True])
def test_a_branch_ends_gated_or_added_to_its_tokens(eight: bool) -> None:
    torch.manual_seed(0)
    full = torch.nn.Linear(24, 16).requires_grad_(requires_grad=False)
    linear = Float8Linear(full) if eight else full
    x, tokens, gate = torch.randn(2, 3, 24), torch.randn(2, 3, 16), torch.randn(16)
    branch = gate * linear(x)
    close(ended(linear, x, End(gate)), branch, 1e-6)
    if not eight:
        total = tokens + ahead(linear, gate)
        found = ended(linear, x, End(gate, total))
        close(found, tokens + branch, 1e-6)
        assert found is total


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float16, 4e-3)], ids=str)
def test_a_product_that_goes_on_is_its_twin(dtype: torch.dtype, bound: float) -> None:
    """Sizes that no tile divides; more tiles than programs; the interpreter multiplies no 8-bit floats."""
    from pab.kernels.gpu import product8 as gpu

    values, weight = random(2, 35, 48, dtype=dtype), random(80, 48, dtype=dtype, seed=1) / 8
    scales, weight_scales, norms = (
        random(*size, 1, dtype=torch.float32, seed=2).abs() + 0.1 for size in ((2, 35), (80,), (2, 35))
    )
    bias, reach = random(80, dtype=dtype, seed=3), torch.tensor([0.07, 0.01])
    rows, columns = Rows8(values, scales, norms), Rows8(weight, weight_scales)
    tile = gpu.Tile(tokens=16, outputs=32, inputs=32, group=2)
    product = float8.plain_linear(rows, columns, bias, torch.float32)
    found, found_scales = gpu.gelu(rows, columns, bias, reach, tile)
    assert torch.equal(found_scales, product8.bounds(norms, reach))
    close(found.float() * found_scales, F.gelu(product, approximate="tanh"), bound)


def test_the_scale_from_above_clips_nothing_and_loses_little() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 256).requires_grad_(requires_grad=False)
    linear.weight[3] *= 20  # a channel that stands out makes the scale of all of them large
    others = torch.arange(256) != 3
    eight, rows = Float8Linear(linear), float8.plain_rows(torch.randn(50, 64))
    weight = Rows8(eight.weight, eight.weight_scales)
    exact = F.gelu(float8.plain_linear(rows, weight, linear.bias, torch.float32), approximate="tanh")
    found = product8.gelu_rows(eight, rows)
    assert found.values.float().abs().max() < LARGEST
    by_row = float8.plain_gelu_rows(eight(rows))
    off, off_by_row = (
        (each.values.float() * each.scales - exact)[:, others].norm() / exact[:, others].norm()
        for each in (found, by_row)
    )
    assert off < 1.05 * off_by_row
    # Nothing is larger than what the channel makes of tokens that point where its weight does.
    worst = float8.plain_rows(weight.values[3:4].float())
    assert LARGEST * 0.9 < product8.gelu_rows(eight, worst).values.float().max() <= LARGEST


def test_a_channel_of_tokens_that_stands_out_costs_no_bits() -> None:
    """Trained models have such channels: by its largest value alone a row could be a hundred times as long as it is."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(1024, 512).requires_grad_(requires_grad=False)
    linear.weight[:, 7] = 0.0
    x = torch.randn(20, 1024)
    x[:, 7] = 3000.0
    eight, rows = Float8Linear(linear), float8.plain_rows(x)
    weight = Rows8(eight.weight, eight.weight_scales)
    exact = F.gelu(float8.plain_linear(rows, weight, linear.bias, torch.float32), approximate="tanh")
    found, by_row = product8.gelu_rows(eight, rows), float8.plain_gelu_rows(eight(rows))
    off, off_by_row = ((each.values.float() * each.scales - exact).norm() / exact.norm() for each in (found, by_row))
    assert off < 1.02 * off_by_row


@pytest.mark.parametrize("times", [0, 1])
def test_tokens_of_zeros_give_zeros_and_so_do_weights_of_zeros(times: int) -> None:
    linear = torch.nn.Linear(16, 8).requires_grad_(requires_grad=False)
    linear.weight[:] *= times
    linear.bias.zero_()
    for x in (torch.zeros(3, 16), (1 - times) * torch.ones(3, 16)):
        found = product8.gelu_rows(Float8Linear(linear), x)
        assert (found.values.float() * found.scales == 0).all()


def test_what_is_not_finite_goes_through_both_products() -> None:
    eight = Float8Linear(torch.nn.Linear(24, 24).requires_grad_(requires_grad=False))
    x = torch.randn(3, 24)
    x[1, 5] = float("nan")
    hidden = product8.gelu_rows(eight, x)
    found = eight(hidden)
    assert found[1].isnan().all()
    assert found[[0, 2]].isfinite().all()


@cache
def plain_clip(eight: bool) -> Denoised:
    model = model_with(PLAIN)
    if eight:
        model.use_float8()
    return render(model, SHORT, REUSING, depth=1)


@pytest.mark.parametrize("way", WAYS)
def test_a_clip_is_the_same_wherever_its_gates_and_sums_are(way: str) -> None:
    found = render(model_with(WAYS[way]), SHORT, REUSING, depth=1)
    close(found.latents, plain_clip(eight=False).latents, 2e-5)
    assert (found.computed, found.reused) == (plain_clip(eight=False).computed, plain_clip(eight=False).reused)


@pytest.mark.parametrize("way", WAYS)
def test_in_bfloat16_they_are_hardly_further_from_float32(way: str) -> None:
    """Biases that are written ahead are rounded once more. Triton's interpreter multiplies no bfloat16."""
    exact = plain_clip(eight=False).latents

    def off(kernels: Kernels) -> float:
        model = model_with(kernels)
        model.transformer.to(torch.bfloat16)
        return float((render(model, SHORT, REUSING, depth=1).latents - exact).norm() / exact.norm())

    assert 0 < off(replace(WAYS[way], temporal=False)) < 1.5 * off(PLAIN)


@pytest.mark.parametrize("way", WAYS_OF_8_BITS)
def test_a_clip_of_8_bit_products_is_near_wherever_its_gates_and_sums_are(way: str) -> None:
    model, plain, full = model_with(WAYS_OF_8_BITS[way]), plain_clip(eight=True), plain_clip(eight=False)
    model.use_float8()
    found = render(model, SHORT, REUSING, depth=1)
    off = (found.latents - full.latents).norm() / full.latents.norm()
    assert off < 1.3 * (plain.latents - full.latents).norm() / full.latents.norm()
    assert found.computed == plain.computed


@pytest.mark.parametrize("eight", [False, True])
def test_gates_and_sums_stay_inside_one_graph_per_pattern(eight: bool) -> None:
    torch._dynamo.reset()
    model, plain = model_with(WAYS_OF_8_BITS["both"] if eight else WAYS["summed"]), plain_clip(eight)
    if eight:
        model.use_float8()
    compile_blocks(model.block_stacks, backend="eager")
    with many_graphs():
        before = graphs_compiled()
        render(model, SHORT, REUSING, depth=1)
        assert graphs_compiled() - before == len(block_patterns(plain.plan, model.transformer.blocks))


def test_gates_that_differ_by_row_or_frame_stay_outside() -> None:
    """Frames that are given have gates of their own, rows of another timestep too."""
    torch.manual_seed(1)
    x, states = torch.randn(2, 4, 4, 2, 4), torch.randn(2, 5, 16)
    active = torch.tensor([[True, False, True, True]] * 2)
    shape = ClipShape(height=16.0, width=32.0, fps=torch.full((1,), 8.0), num_latent_frames=4)
    for timestep, frames in ((500.0, active), (torch.tensor([500.0, 300.0]), None), (500.0, None)):
        outputs = []
        for kernels in (PLAIN, WAYS["summed"]):
            transformer = model_with(kernels).transformer
            with torch.inference_mode():
                text = transformer.prepare_text(states)
                outputs.append(transformer.denoise(x, timestep, text, clip=shape, active_BT=frames))
        close(outputs[1], outputs[0], 1e-5)


def on_ranks(cfg: int) -> tuple[Tensor, Tensor]:
    """A clip in full precision, and one of 8-bit products."""
    group = open_group(dp=1, cfg=cfg, sp=2 // cfg, device=torch.device("cpu"))
    eight = model_with(WAYS_OF_8_BITS["both"])
    eight.use_float8()
    models = (model_with(WAYS["summed"]), eight)
    full, rounded = (render(model, SHORT, REUSING, depth=1, group=group).latents for model in models)
    return full, rounded


@pytest.mark.parametrize("cfg", [1, 2])
def test_ranks_with_gates_and_sums_in_products_make_the_plain_clip(cfg: int) -> None:
    full = plain_clip(eight=False).latents
    usual = (plain_clip(eight=True).latents - full).norm()
    for latents, rounded in run_on_ranks(2, on_ranks, cfg):
        close(latents, full, 2e-5)
        assert 0 < (rounded - full).norm() < 1.3 * usual


def test_latte_s_clip_is_the_same_wherever_its_gates_and_sums_are() -> None:
    world = replace(WORLDS["latte"], build=lambda: Latte(replace(LATTE, num_layers=1, num_heads=2, head_dim=24)),
                    sites=latte_sites(1))  # fmt: skip
    request = noise_clip(num_steps=3, num_frames=3, height=16, width=32, negative_prompt="a b c d")
    plain = world.render(world.model(), request, rules=REUSING, group=NodeGroup())
    model = world.model()
    model.transformer.use_kernels(lambda **_: WAYS["summed"])
    close(world.render(model, request, rules=REUSING).latents, plain.latents, 2e-5)
