"""Every fused operation gives what its plain twin gives: odd sizes, padding, masks; Triton's interpreter on a CPU."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pab.broadcast.rules import pyramid
from pab.execution.choice import execution_of
from pab.execution.compiled import compile_blocks, graphs_compiled, many_graphs
from pab.families import FAMILIES
from pab.families.latte.sites import latte_sites
from pab.families.latte.transformer import Latte
from pab.families.open_sora.stdit3 import STDiT3
from pab.families.open_sora.stdit3_video import STDiT3Video
from pab.kernels import (
    attention,
    choice,
    flash3,
    float8,
    head_norm,
    kept_int8,
    linear_gelu,
    modulated_norm,
    temporal_attention,
)
from pab.kernels.choice import PLAIN, Kernels
from pab.sampling.denoise import LoopSettings
from tests.pab.noise_worlds import LATTE, WORLDS
from tests.pab.noise_worlds import clip as noise_clip
from tests.pab.test_compiled import block_patterns
from tests.pab.worlds import CONFIG, clip, render, tiny_model

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# The interpreter knows no bfloat16 products; float16 takes the same way through the kernels.
PRECISIONS = {torch.float32: 5e-6, torch.float16: 4e-3}
precisions = pytest.mark.parametrize(("dtype", "bound"), PRECISIONS.items(), ids=str)


def random(*size: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def norm_weights(head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return random(head_dim, dtype=dtype, seed=1) / 4 + 1, random(head_dim, dtype=dtype, seed=2) / 4 + 1


def rotation(frames: int, head_dim: int) -> tuple[Tensor, Tensor]:
    angles = random(frames, head_dim // 2, dtype=torch.float32, seed=3).repeat_interleave(2, dim=-1)
    return angles.cos(), angles.sin()


def close(fused: Tensor, plain: Tensor, bound: float) -> None:
    assert fused.dtype == plain.dtype
    assert fused.shape == plain.shape
    assert (fused.float() - plain.float()).abs().max() <= bound * plain.float().abs().max().clamp(min=1)


@precisions
@pytest.mark.parametrize(
    ("rows", "frames", "patches", "heads", "head_dim"),
    [(2, 5, 1, 2, 8), (1, 15, 2, 2, 72), (1, 18, 2, 1, 72), (2, 1, 1, 1, 64)],
)
def test_temporal_attention_equals_its_twin(
    rows: int, frames: int, patches: int, heads: int, head_dim: int, dtype: torch.dtype, bound: float
) -> None:
    qkv = random(rows, frames, patches, 3 * heads * head_dim, dtype=dtype)
    given = (None, None) if head_dim == 64 else (norm_weights(head_dim, dtype), rotation(frames, head_dim))
    fused = temporal_attention.fused(qkv, heads, *given)
    close(fused, temporal_attention.plain(qkv, heads, *given), bound)


@precisions
@pytest.mark.parametrize(("width", "frames"), [(32, 1), (72, 3), (1152, 1)])
def test_modulated_norm_equals_its_twin(width: int, frames: int, dtype: torch.dtype, bound: float) -> None:
    x, a, c = (random(2, 3, 1, width, dtype=dtype, seed=seed) for seed in range(3))
    shift, scale = (random(2, frames, 1, width, dtype=dtype, seed=seed) for seed in (3, 4))
    for addends in ((), (a,), (a, c)):
        fused, plain = (f(x, addends, shift, scale) for f in (modulated_norm.fused, modulated_norm.plain))
        assert torch.equal(fused[0], plain[0])
        close(fused[1], plain[1], bound)


@precisions
@pytest.mark.parametrize(("queries", "keys", "heads", "head_dim"), [(70, 9, 1, 72), (20, 70, 2, 24)])
@pytest.mark.parametrize("masked", [False, True])
def test_cross_attention_equals_its_twin(
    queries: int, keys: int, heads: int, head_dim: int, masked: bool, dtype: torch.dtype, bound: float
) -> None:
    """Rows of different true lengths, with holes among the keys that count."""
    q = random(2, queries, heads * head_dim, dtype=dtype)
    keys_values = random(2, keys, 2, heads, head_dim, dtype=dtype, seed=1).permute(0, 2, 3, 1, 4)
    mask = random(2, 1, 1, keys, dtype=torch.float32, seed=2) > -0.3
    mask[..., 0] = True
    mask[0, ..., keys // 2 :] = False
    given = (q, keys_values, mask if masked else None)
    close(attention.fused_cross(*given), attention.plain_cross(*given), bound)


@precisions
@pytest.mark.parametrize(("heads", "head_dim"), [(2, 72), (3, 24), (1, 64)])
def test_query_and_key_norm_equals_its_twin(heads: int, head_dim: int, dtype: torch.dtype, bound: float) -> None:
    qkv = random(2, 5, 3 * heads * head_dim, dtype=dtype)
    norm = norm_weights(head_dim, dtype)
    for fused, plain in zip(head_norm.fused(qkv, heads, norm), head_norm.plain(qkv, heads, norm), strict=True):
        close(fused, plain, bound)


@pytest.mark.parametrize(("width", "dtype"), [(64, torch.float32), (24, torch.float16), (72, torch.bfloat16)], ids=str)
@pytest.mark.parametrize("way", ["plain", "fused"])
def test_tokens_kept_as_int8_are_off_by_half_a_step_at_most(width: int, dtype: torch.dtype, way: str) -> None:
    x = random(1, 2, 3, width, dtype=dtype)
    x[0, 0, 0] = 0
    x[0, 0, 1] *= 1000
    x[0, 0, 2, 3:] = 0
    packed = getattr(kept_int8, f"{way}_pack")(x)
    found = getattr(kept_int8, f"{way}_unpack")(packed)
    assert (found.dtype, found.shape) == (x.dtype, x.shape)
    assert packed.nbytes == 2 * 3 * (width + 4)
    largest = x.float().abs().amax(-1, keepdim=True)
    # Half a step, and the rounding of what comes back to the precision.
    bound = largest * (1 / 254 + torch.finfo(dtype).eps)
    assert ((found.float() - x.float()).abs() <= bound).all()
    assert (found.float().abs().amax(-1, keepdim=True) - largest).abs().max() <= bound.max() / 100
    assert found[0, 0, 0].abs().max() == 0


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("way", ["plain", "fused"])
def test_what_is_not_finite_is_not_hidden_by_int8(broken: float, way: str) -> None:
    x = random(1, 2, 2, 24, dtype=torch.float32)
    x[0, 1, 0, 7] = broken
    found = getattr(kept_int8, f"{way}_unpack")(getattr(kept_int8, f"{way}_pack")(x))
    assert found[0, 1, 0].isnan().all()
    assert found[0, 0].isfinite().all()
    assert found[0, 1, 1].isfinite().all()


def test_a_clip_that_keeps_int8_holds_a_quarter_and_stays_near() -> None:
    full = render(model_with(PLAIN), SHORT, REUSING, depth=1)
    small = render(model_with(PLAIN), SHORT, REUSING, depth=1, loop=LoopSettings(cache_dtype="int8"))
    width = 48
    assert small.kept_bytes_peak == full.kept_bytes_peak * (width + 4) / (4 * width)
    off = (small.latents - full.latents).abs().max()
    assert 0 < off < 0.02 * full.latents.abs().max()


def test_gelu_in_the_epilogue_is_the_tanh_one() -> None:
    x, weight, bias = (random(*size, dtype=torch.float32) for size in ((5, 7, 24), (40, 24), (40,)))
    close(linear_gelu.fused(x, weight, bias), linear_gelu.plain(x, weight, bias), 2e-6)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float16, 2e-3)], ids=str)
@pytest.mark.parametrize("width", [32, 72])
def test_what_is_rounded_to_8_bits_is_what_the_twin_rounds(width: int, dtype: torch.dtype, bound: float) -> None:
    """The interpreter rounds to 8-bit floats without carrying, so values are looked at before that."""
    from pab.kernels.gpu import float8 as gpu
    from pab.kernels.gpu import modulated_norm as gpu_norm

    x, branch = (random(2, 3, 2, width, dtype=dtype, seed=seed) for seed in range(2))
    shift, scale = (random(2, 1, 1, width, dtype=dtype, seed=seed) for seed in (3, 4))
    wide = torch.float32

    def same(found: Sequence[Tensor], twin: float8.Rows8, exact: Tensor) -> None:
        values, scales, norms = found
        assert twin.norms is not None
        assert torch.allclose(norms, twin.norms, rtol=bound)
        assert torch.allclose(scales, twin.scales, rtol=bound)
        assert values.abs().amax(-1).sub(float8.LARGEST).abs().max() <= 0.1
        close(values * scales, exact.float(), bound)
        # A float of 3 bits after the point is off by a sixteenth of itself at most, below the smallest by half a step.
        off = (twin.values.float() * twin.scales - exact.float()).abs()
        assert (
            off <= exact.float().abs() * (1 / 16 + bound) + twin.scales * 2.0**-10 + bound * exact.abs().max()
        ).all()

    same(gpu.rows(x, gelu=False, dtype=wide), float8.plain_rows(x), x)
    gelu = torch.nn.functional.gelu(x.float(), approximate="tanh")
    same(gpu.rows(x, gelu=True, dtype=wide), float8.plain_gelu_rows(x), gelu)
    for addends in ((), (branch,), (branch, x)):
        total, *found = gpu_norm.launch_rows(x, addends, shift, scale, eps=modulated_norm.EPS, dtype=wide)
        twin_total, twin = float8.plain_norm_rows(x, addends, shift, scale)
        assert torch.equal(total, twin_total)
        same(found, twin, modulated_norm.plain(x.float(), [a.float() for a in addends], shift, scale)[1])
    total, gated, *found = gpu.gated_sum(x, branch, scale, keeps=True, dtype=wide)
    twin_total, twin_gated, twin = float8.plain_gated_sum(x, branch, scale)
    assert torch.equal(total, twin_total)
    assert torch.equal(gated, twin_gated)
    same(found, twin, twin_total)
    assert gpu.gated_sum(x, branch, scale, keeps=False)[1].numel() == 0


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden_by_8_bit_rows(broken: float) -> None:
    from pab.kernels.gpu import float8 as gpu

    x = random(1, 2, 2, 24, dtype=torch.float32)
    x[0, 1, 0, 7] = broken
    for values, scales, _ in (float8.plain_rows(x), gpu.rows(x, gelu=False, dtype=torch.float32)):
        found = values.float() * scales
        assert found[0, 1, 0].isnan().all()
        assert found[0, 0].isfinite().all()


@pytest.mark.gpu
@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_8_bit_products_on_a_gpu_are_the_twin_s(dtype: torch.dtype) -> None:
    linear = torch.nn.Linear(1152, 4608, device=DEVICE, dtype=dtype)
    eight = float8.Float8Linear(linear)
    x = random(2, 3, 50, 1152, dtype=dtype)
    twin = float8.plain_rows(x)
    rows = float8.rows(x)
    assert (rows.values.float() != twin.values.float()).float().mean() < 1e-3
    weight = float8.Rows8(eight.weight, eight.weight_scales)
    close(eight(x), float8.plain_linear(twin, weight, linear.bias, dtype), 0.01)
    close(float8.gelu_rows(x).values.float(), float8.plain_gelu_rows(x).values.float(), 0.07)


EVERY_WAY = (
    Kernels(temporal=True, cross=True, norm=True, gelu=True),
    Kernels(head_norm=True),
    Kernels(flash3=True),
)


def model_with(kernels: Kernels) -> STDiT3Video:
    torch.manual_seed(3)
    config = replace(CONFIG, depth=1, hidden_size=48, num_heads=2)
    model = replace(tiny_model(), transformer=STDiT3(config).eval().to(DEVICE))
    model.transformer.choose_kernels = lambda **_: kernels
    return model


SHORT = clip(num_steps=3, num_frames=4, height=8, width=16, negative_prompt="a b c d e")
# Two steps reuse: every site is computed, kept and reused in three steps.
REUSING = pyramid(2, 3, 3, window=(0, 1000))


def test_a_clip_with_kernels_is_the_plain_clip() -> None:
    plain = render(model_with(PLAIN), SHORT, REUSING, depth=1)
    assert sum(plain.reused.values()) > 0
    for kernels in EVERY_WAY:
        close(render(model_with(kernels), SHORT, REUSING, depth=1).latents, plain.latents, 2e-5)


def test_a_clip_of_8_bit_products_stays_near_and_decides_alike() -> None:
    plain, model = render(model_with(PLAIN), SHORT, REUSING, depth=1), model_with(PLAIN)
    before = sum(each.nbytes for each in model.transformer.spatial_blocks.state_dict().values())
    model.use_float8()
    eight = render(model, SHORT, REUSING, depth=1)
    off = (eight.latents - plain.latents).square().mean().sqrt() / plain.latents.square().mean().sqrt()
    assert 0 < off < 0.05
    assert (eight.computed, eight.reused) == (plain.computed, plain.reused)
    assert sum(each.nbytes for each in model.transformer.spatial_blocks.state_dict().values()) < 0.45 * before


@pytest.mark.parametrize("name", ["latte", "open_sora_plan_v110"])
def test_a_clip_of_latte_s_blocks_of_8_bit_products_stays_near(name: str) -> None:
    world, request = WORLDS[name], noise_clip(num_steps=6)
    plain, model = world.render(world.model(), request), world.model()
    before = sum(each.nbytes for each in model.transformer.transformer_blocks.state_dict().values())
    model.use_float8()
    eight = world.render(model, request)
    off = (eight.latents - plain.latents).square().mean().sqrt() / plain.latents.square().mean().sqrt()
    assert 0 < off < 0.05
    assert (eight.computed, eight.reused) == (plain.computed, plain.reused)
    assert sum(plain.reused.values()) > 0
    assert sum(each.nbytes for each in model.transformer.transformer_blocks.state_dict().values()) < 0.5 * before


def test_a_gpu_without_8_bit_matrix_units_is_told_what_it_lacks() -> None:
    for capability in ((8, 9), (9, 0), (12, 0)):
        float8.check_gpu("new", capability)
    with pytest.raises(float8.Float8Error, match=r"A100 has compute capability 8\.0, needs 8\.9 .* --linears full"):
        float8.check_gpu("A100", (8, 0))


def test_products_that_a_recording_would_lack_are_known() -> None:
    """On Ada GPUs torch starts them on another stream before 2.12: a replay would repeat what they gave before."""
    versions = ("2.11.0+cu130", "2.12.0", "2.13.0a0+git1")
    assert [float8.leaves_its_stream((8, 9), version) for version in versions] == [True, False, False]
    assert not float8.leaves_its_stream((9, 0), versions[0])


def test_a_family_without_8_bit_products_refuses_them() -> None:
    given = {"compiled": False, "attention": "auto", "device": "cpu", "precision": "float32", "linears": "float8"}
    assert execution_of(FAMILIES["open_sora"], **given).identity == " linears float8"
    with pytest.raises(ValueError, match=r"linears='float8': demo has no 8-bit matrix products, only full"):
        execution_of(FAMILIES["demo"], **given)


@pytest.mark.parametrize("name", ["latte", "open_sora_plan_v110"])
def test_a_clip_of_latte_s_blocks_with_kernels_is_the_plain_clip(name: str) -> None:
    world = replace(WORLDS[name], build=lambda: Latte(replace(LATTE, num_layers=1, num_heads=2, head_dim=24)),
                    sites=latte_sites(1))  # fmt: skip
    request = noise_clip(num_steps=4, num_frames=3, height=16, width=32, negative_prompt="a b c d")
    plain = world.render(world.model(), request, rules=REUSING)
    model = world.model()
    before = sorted(model.transformer.state_dict())
    kernels = Kernels(temporal=True, flash3=True, norm=True, gelu=True)
    model.transformer.use_kernels(lambda **_: kernels)
    assert sum("to_qkv.weight" in key for key in model.transformer.state_dict()) == 2
    assert sum("attn1.to_k.weight" in key for key in before) == 2
    found = world.render(model, request, rules=REUSING)
    close(found.latents, plain.latents, 2e-5)
    assert (found.computed, found.reused) == (plain.computed, plain.reused)


@pytest.mark.parametrize("kernels", [EVERY_WAY[0], "8-bit products"], ids=str)
def test_kernels_and_8_bit_products_stay_inside_one_graph_per_pattern(kernels: Kernels | str) -> None:
    torch._dynamo.reset()
    model, plain = (model_with(kernels if isinstance(kernels, Kernels) else PLAIN) for _ in range(2))
    if isinstance(kernels, str):
        model.use_float8()
        plain.use_float8()
    eager = render(plain, SHORT, REUSING, depth=1)
    compile_blocks(model.block_stacks, backend="eager")
    with many_graphs():
        before = graphs_compiled()
        assert torch.equal(render(model, SHORT, REUSING, depth=1).latents, eager.latents)
        warm = graphs_compiled() - before
        assert warm == len(block_patterns(eager.plan, model.transformer.blocks))
        render(model, replace(SHORT, prompt="one two", negative_prompt="a b c d"), REUSING, depth=1)
        assert graphs_compiled() - before == warm


def test_what_a_gpu_cannot_use_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    cuda = torch.device("cuda")
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        for _ in range(3):
            long = choice.fastest(device=cuda, dtype=torch.bfloat16, head_dim=72, num_frames=129)
        odd = choice.fastest(device=cuda, dtype=torch.bfloat16, head_dim=12, num_frames=15)
        fits = choice.fastest(device=cuda, dtype=torch.bfloat16, head_dim=72, num_frames=15)
        assert choice.fastest(device=cuda, dtype=torch.float32, head_dim=72, num_frames=15) == PLAIN
        assert choice.fastest(device=torch.device("cpu"), dtype=torch.bfloat16, head_dim=72, num_frames=15) == PLAIN
    assert choice.fastest(device=cuda, dtype=torch.bfloat16, head_dim=72, num_frames=15) == PLAIN, "gradients"
    used, hopper = choice.MEASURED_FASTER, flash3.runs_on(cuda)
    by_flash3 = hopper and flash3.installed()
    assert fits == replace(used, flash3=by_flash3, gelu8=used.gelu8 and hopper)
    assert long == replace(fits, temporal=False)
    assert odd == replace(fits, temporal=False, cross=False, flash3=False, head_norm=False)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "129 latent frames" in messages[0]
    assert "head size 12" in messages[1]


def test_a_row_of_every_published_width_has_room_in_its_program_s_registers(tmp_path: Path) -> None:
    """With one warp for 13,824 channels a thread kept 5,008 bytes of its row in the device's memory: 16 times as slow."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    told = subprocess.run(
        [sys.executable, "-m", "tests.pab.gpu_registers"], capture_output=True, text=True, check=True, env=environment
    )
    lines = [json.loads(line) for line in told.stdout.splitlines()]
    assert len(lines) == 6 * 9 + 6
    # A few bytes are the compiler's own.
    assert [line for line in lines if line["bytes"] > 16] == []
