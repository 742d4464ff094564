"""Every fused operation gives what its plain twin gives: odd sizes, padding, masks; Triton's interpreter on a CPU."""

import logging
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pab.compiled import compile_blocks, graphs_compiled, many_graphs
from pab.kernels import attention, choice, linear_gelu, modulated_norm, temporal_attention
from pab.kernels.choice import PLAIN, Kernels
from pab.models.stdit3 import STDiT3
from pab.models.stdit3_video import STDiT3Video
from pab.plan import NO_BROADCAST
from tests.pab.test_compiled import block_patterns
from tests.pab.worlds import CONFIG, PAB246, clip, render, tiny_model

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
    [(2, 5, 3, 2, 8), (1, 15, 2, 2, 72), (1, 18, 2, 1, 72), (2, 1, 2, 1, 64)],
)
@pytest.mark.parametrize("extras", [True, False])
def test_temporal_attention_equals_its_twin(
    rows: int, frames: int, patches: int, heads: int, head_dim: int, extras: bool, dtype: torch.dtype, bound: float
) -> None:
    qkv = random(rows, frames, patches, 3 * heads * head_dim, dtype=dtype)
    given = (norm_weights(head_dim, dtype), rotation(frames, head_dim)) if extras else (None, None)
    fused = temporal_attention.fused(qkv, heads, *given)
    close(fused, temporal_attention.plain(qkv, heads, *given), bound)


@precisions
@pytest.mark.parametrize("width", [32, 72, 1152])
@pytest.mark.parametrize("frames", [1, 3])
def test_modulated_norm_equals_its_twin(width: int, frames: int, dtype: torch.dtype, bound: float) -> None:
    x, a, c = (random(2, 3, 5, width, dtype=dtype, seed=seed) for seed in range(3))
    shift, scale = (random(2, frames, 1, width, dtype=dtype, seed=seed) for seed in (3, 4))
    for addends in ((), (a,), (a, c)):
        fused, plain = (f(x, addends, shift, scale) for f in (modulated_norm.fused, modulated_norm.plain))
        assert torch.equal(fused[0], plain[0])
        close(fused[1], plain[1], bound)


@precisions
@pytest.mark.parametrize(("queries", "keys", "heads", "head_dim"), [(70, 9, 2, 72), (20, 130, 1, 64), (20, 65, 2, 24)])
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
@pytest.mark.parametrize(("tokens", "heads", "head_dim"), [(130, 1, 72), (33, 2, 16)])
@pytest.mark.parametrize("normed", [False, True])
def test_self_attention_equals_its_twin(
    tokens: int, heads: int, head_dim: int, normed: bool, dtype: torch.dtype, bound: float
) -> None:
    qkv = random(2, tokens, 3 * heads * head_dim, dtype=dtype)
    norm = norm_weights(head_dim, dtype) if normed else None
    close(attention.fused_self(qkv, heads, norm), attention.plain_self(qkv, heads, norm), bound)


def test_gelu_in_the_epilogue_is_the_tanh_one() -> None:
    x, weight, bias = (random(*size, dtype=torch.float32) for size in ((5, 7, 24), (40, 24), (40,)))
    close(linear_gelu.fused(x, weight, bias), linear_gelu.plain(x, weight, bias), 2e-6)


ALL = Kernels(temporal=True, cross=True, spatial=True, norm=True, gelu=True)


def model_with(kernels: Kernels) -> STDiT3Video:
    torch.manual_seed(3)
    config = replace(CONFIG, depth=1, hidden_size=48, num_heads=2)
    model = replace(tiny_model(), transformer=STDiT3(config).eval().to(DEVICE))
    model.transformer.choose_kernels = lambda **_: kernels
    return model


def test_a_clip_with_all_kernels_is_the_plain_clip() -> None:
    request = clip(num_steps=4, num_frames=6, height=16, width=24)
    for rules in (NO_BROADCAST, PAB246):
        fused, plain = (render(model_with(kernels), request, rules, depth=1).latents for kernels in (ALL, PLAIN))
        close(fused, plain, 2e-5)


def test_kernels_stay_inside_one_graph_per_pattern() -> None:
    torch._dynamo.reset()
    model, request = model_with(ALL), clip(num_steps=4, num_frames=6, height=16, width=24)
    eager = render(model_with(ALL), request, PAB246, depth=1)
    compile_blocks(model.block_stacks, backend="eager")
    with many_graphs():
        before = graphs_compiled()
        assert torch.equal(render(model, request, PAB246, depth=1).latents, eager.latents)
        warm = graphs_compiled() - before
        assert warm == len(block_patterns(eager.plan, model.transformer.blocks))
        render(model, replace(request, prompt="one two three four five"), PAB246, depth=1)
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
    assert fits == choice.MEASURED_FASTER
    assert long == replace(fits, temporal=False)
    assert odd == replace(fits, temporal=False, cross=False)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "129 latent frames" in messages[0]
    assert "head size 12" in messages[1]
