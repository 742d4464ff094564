"""Tokens to 8-bit integers with a scale per token and back, each in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pab.kernels.gpu.widths import two_parts

# Adding and taking away 1.5 x 2^23 rounds a float32 of this size to the nearest integer, halves to the even one.
ROUND = tl.constexpr(12582912.0)
SMALLEST_SCALE = tl.constexpr(1.0e-30)
LARGEST_FLOAT = tl.constexpr(3.4028234e38)


@triton.jit
def _rounded(x):
    return ((x + ROUND) - ROUND).to(tl.int8)


@triton.jit
def _pack_kernel(x, values, scales, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    # A width that is no power of two is read as two parts: 1152 as 1024 + 128.
    a = tl.arange(0, D0)
    b = D0 + tl.arange(0, D1)
    part_a = tl.load(x + token * D + a, mask=a < D, other=0.0).to(tl.float32)
    part_b = tl.load(x + token * D + b, mask=b < D, other=0.0).to(tl.float32)
    # A maximum need not show NaN: what is not finite is counted.
    finite_a = tl.abs(part_a) <= LARGEST_FLOAT
    finite_b = tl.abs(part_b) <= LARGEST_FLOAT
    finite = tl.sum(finite_a.to(tl.int32), axis=0) + tl.sum(finite_b.to(tl.int32), axis=0)
    part_a = tl.where(finite_a, part_a, 0.0)
    part_b = tl.where(finite_b, part_b, 0.0)
    largest = tl.maximum(tl.max(tl.abs(part_a), axis=0), tl.max(tl.abs(part_b), axis=0))
    scale = tl.maximum(largest / 127.0, SMALLEST_SCALE)
    tl.store(scales + token, tl.where(finite == D0 + D1, scale, float("nan")))
    tl.store(values + token * D + a, _rounded(part_a / scale), mask=a < D)
    tl.store(values + token * D + b, _rounded(part_b / scale), mask=b < D)


@triton.jit
def _unpack_kernel(values, scales, x, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    a = tl.arange(0, D0)
    b = D0 + tl.arange(0, D1)
    scale = tl.load(scales + token)
    part_a = tl.load(values + token * D + a, mask=a < D, other=0).to(tl.float32) * scale
    part_b = tl.load(values + token * D + b, mask=b < D, other=0).to(tl.float32) * scale
    tl.store(x + token * D + a, part_a.to(x.dtype.element_ty), mask=a < D)
    tl.store(x + token * D + b, part_b.to(x.dtype.element_ty), mask=b < D)


def pack(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns int8 values [..., D] and float32 scales [..., 1]."""
    x = x.contiguous()
    dim = x.shape[-1]
    values = torch.empty_like(x, dtype=torch.int8)
    scales = x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
    d0, d1 = two_parts(dim)
    _pack_kernel[(scales.numel(),)](x, values, scales, D=dim, D0=d0, D1=d1, num_warps=4)
    return values, scales


def unpack(values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns values times scales."""
    dim = values.shape[-1]
    x = torch.empty_like(values, dtype=dtype)
    d0, d1 = two_parts(dim)
    _unpack_kernel[(scales.numel(),)](values, scales, x, D=dim, D0=d0, D1=d1, num_warps=4)
    return x
