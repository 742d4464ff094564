"""What decoders compute between convolutions: each fused operation gives what torch's own gives, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pab.kernels import group_norm, wide_attention
from pab.kernels.group_norm import Moments, Norm
from tests.pab.test_kernels import close, precisions, random

SIZES = [(1, 1, 8, 4, 5, 7), (2, 3, 16, 4, 3, 5), (3, 1, 4, 4, 2, 2)]
"""Clips, frames, channels, groups, height, width."""


def norm_of(channels: int, groups: int, dtype: torch.dtype) -> Norm:
    weight, bias = (random(channels, dtype=dtype, seed=seed) for seed in (3, 4))
    return Norm(weight=weight, bias=bias, groups=groups, eps=1e-5)


def found_by(fused: tuple[Tensor, Tensor, int]) -> Moments:
    return Moments(parts=fused[1], rows_per_part=fused[2])


@precisions
@pytest.mark.parametrize("taps", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_group_norm_over_a_clips_frames_is_torchs_own(
    size: tuple[int, ...], taps: int, dtype: torch.dtype, bound: float
) -> None:
    from pab.kernels.gpu import group_norm as gpu

    clips, frames, channels, groups, height, width = size
    x = random(clips * frames, channels, height, width, dtype=dtype) + 4  # far from zero, as decoders' are
    shift, norm = random(channels, dtype=dtype, seed=1), norm_of(channels, groups, dtype)
    wide = (x.float() + shift.float().view(-1, 1, 1)).unflatten(0, (clips, frames)).transpose(1, 2)
    exact = F.silu(F.group_norm(wide, groups, norm.weight.float(), norm.bias.float(), norm.eps))
    if taps > 1:
        padded = F.pad(exact, [0, 0, 0, 0, taps - 1, 0])
        exact = torch.cat([padded[:, :, tap : tap + frames] for tap in range(taps)], dim=1)
    exact = exact.transpose(1, 2).flatten(0, 1).to(dtype)
    found = group_norm.moments(x, groups=groups, clips=clips, shift=shift)
    close(group_norm.normed(x, found, norm, taps=taps, shift=shift), exact, bound)
    on_gpu = found_by(gpu.moments(x, None, groups=groups, clips=clips, shift=shift))
    fused = gpu.normed(x, on_gpu, norm, silu=True, taps=taps, shift=shift)
    close(fused, exact, bound)
    assert fused.is_contiguous(memory_format=torch.channels_last)


@precisions
def test_a_residual_sum_has_the_moments_of_what_it_was_rounded_to(dtype: torch.dtype, bound: float) -> None:
    from pab.kernels.gpu import group_norm as gpu

    x, y = (random(2, 8, 5, 7, dtype=dtype, seed=seed) for seed in (0, 1))
    shift, norm = random(8, dtype=torch.float32, seed=2), norm_of(8, 4, dtype)
    plain, found = group_norm.sum_and_moments(x, y, groups=4, clips=2, shift=shift)
    # A part has several turns of rows, and the last part is shorter.
    fused, *of_parts = gpu.moments(x, y, groups=4, clips=2, shift=shift, elements=32, most_parts=3)
    on_gpu = found_by((fused, *of_parts))
    assert on_gpu.parts.shape == (2, 2, 3, 4)
    assert torch.equal(plain, fused)
    exact = F.group_norm(fused.float(), 4, norm.weight.float(), norm.bias.float(), norm.eps).to(dtype)
    close(group_norm.normed(fused, found, norm, silu=False), exact, bound)
    close(gpu.normed(fused, on_gpu, norm, silu=False, taps=1, shift=None), exact, bound)


def test_a_clip_is_normed_alike_whatever_is_beside_it() -> None:
    from pab.kernels.gpu import group_norm as gpu

    x = random(3, 8, 20, 30, dtype=torch.float32)
    _, together, _ = gpu.moments(x, None, groups=4, clips=3, shift=None)
    _, alone, _ = gpu.moments(x[1:2], None, groups=4, clips=1, shift=None)
    assert torch.equal(together[1:2], alone)


def test_a_softmax_of_scaled_scores_is_torchs_own() -> None:
    from pab.kernels.gpu import softmax as gpu

    scores = 9 * random(2, 3, 37, dtype=torch.float32)
    close(gpu.launch(scores, 0.3, torch.float16), torch.softmax(scores * 0.3, dim=-1).half(), 1e-3)


def test_attention_of_a_wide_head_without_a_gpu_is_torchs_own() -> None:
    q, k, v = (random(2, 6, 16, dtype=torch.float32, seed=seed) for seed in range(3))
    if not q.is_cuda:
        exact = torch.softmax(q @ k.transpose(1, 2) / 4, dim=-1) @ v
        close(wide_attention.fused(q, k, v), exact, 1e-6)
