"""Tokens to rows of 8-bit floats, in the pass in which GELU or a gated residual sum is computed."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pab.kernels.gpu.widths import two_parts, warps_of

FLOAT8 = torch.float8_e4m3fn
SMALLEST_SCALE = tl.constexpr(1e-12)
LARGEST_FLOAT = tl.constexpr(3.4028234e38)


@triton.jit
def scale_of(part_a, part_b):
    """Returns the scale [tokens, 1] that brings the largest magnitude of every row to 448; NaN where one is not finite."""
    largest = tl.maximum(tl.max(tl.abs(part_a), axis=1), tl.max(tl.abs(part_b), axis=1))
    scale = tl.maximum(largest / 448.0, SMALLEST_SCALE)
    # A maximum need not show NaN; a sum does.
    total = tl.sum(tl.abs(part_a), axis=1) + tl.sum(tl.abs(part_b), axis=1)
    return tl.where(total <= LARGEST_FLOAT, scale, float("nan"))[:, None]


@triton.jit
def row_norm(part_a, part_b):
    """Returns the Euclidean norm [tokens, 1] of every row."""
    return tl.sqrt(tl.sum(part_a * part_a, axis=1) + tl.sum(part_b * part_b, axis=1))[:, None]


@triton.jit
def rounded(x, scale, values):
    """Returns x over scale as the 8-bit floats that `values` points to."""
    # One division a row: one a value would take longer than its memory.
    return (x * (1.0 / scale)).to(values.dtype.element_ty)


@triton.jit
def _gelu(x):
    # tanh-GELU: (1 + tanh z) / 2 is the sigmoid of 2 z; -2 log2(e) sqrt(2 / pi) is in the constant. No division: see above.
    inverse_root = tl.rsqrt(1.0 + tl.exp2(-2.302208198 * (x + 0.044715 * x * x * x)))
    return x * inverse_root * inverse_root


@triton.jit
def _rows_kernel(x, values, scales, norms, num_tokens, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
                 ROWS: tl.constexpr, GELU: tl.constexpr):  # fmt: skip
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    seen = (token < num_tokens)[:, None]
    at = (token.to(tl.int64) * D)[:, None]
    a = tl.arange(0, D0)[None, :]
    b = D0 + tl.arange(0, D1)[None, :]
    inside_a = seen & (a < D)
    inside_b = seen & (b < D)
    part_a = tl.load(x + at + a, mask=inside_a, other=0.0).to(tl.float32)
    part_b = tl.load(x + at + b, mask=inside_b, other=0.0).to(tl.float32)
    if GELU:
        part_a = _gelu(part_a)
        part_b = _gelu(part_b)
    scale = scale_of(part_a, part_b)
    tl.store(scales + token[:, None], scale, mask=seen)
    tl.store(norms + token[:, None], row_norm(part_a, part_b), mask=seen)
    tl.store(values + at + a, rounded(part_a, scale, values), mask=inside_a)
    tl.store(values + at + b, rounded(part_b, scale, values), mask=inside_b)


@triton.jit
def _gated(x, branch, gate, total, gated, at, group, channel, inside, KEEPS: tl.constexpr, GATES: tl.constexpr):
    kind = total.dtype.element_ty
    part = tl.load(branch + at + channel, mask=inside, other=0.0)
    if GATES:
        gate = tl.load(gate + group + channel, mask=inside, other=0.0).to(tl.float32)
        # Rounded after the product and after the sum, as the two one by one are.
        part = (part.to(tl.float32) * gate).to(kind)
    if KEEPS:
        tl.store(gated + at + channel, part, mask=inside)
    part = (tl.load(x + at + channel, mask=inside, other=0.0).to(tl.float32) + part.to(tl.float32)).to(kind)
    tl.store(total + at + channel, part, mask=inside)
    return part.to(tl.float32)


@triton.jit
def _gated_sum_kernel(x, branch, gate, total, gated, values, scales, norms, num_tokens, per_group,
                      D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, ROWS: tl.constexpr,
                      KEEPS: tl.constexpr, GATES: tl.constexpr):  # fmt: skip
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    seen = (token < num_tokens)[:, None]
    at = (token.to(tl.int64) * D)[:, None]
    group = ((token // per_group) * D)[:, None]
    a = tl.arange(0, D0)[None, :]
    b = D0 + tl.arange(0, D1)[None, :]
    inside_a = seen & (a < D)
    inside_b = seen & (b < D)
    part_a = _gated(x, branch, gate, total, gated, at, group, a, inside_a, KEEPS, GATES)
    part_b = _gated(x, branch, gate, total, gated, at, group, b, inside_b, KEEPS, GATES)
    scale = scale_of(part_a, part_b)
    tl.store(scales + token[:, None], scale, mask=seen)
    tl.store(norms + token[:, None], row_norm(part_a, part_b), mask=seen)
    tl.store(values + at + a, rounded(part_a, scale, values), mask=inside_a)
    tl.store(values + at + b, rounded(part_b, scale, values), mask=inside_b)


def rows(
    x: Tensor, *, gelu: bool, dtype: torch.dtype = FLOAT8, tile: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns 8-bit values [..., D], float32 scales [..., 1] and norms [..., 1] of x or of its GELU.

    `dtype`: another one shows what is rounded. `tile`: tokens per program, warps (default: one, and what holds it).
    """
    dim = x.shape[-1]
    values, scales, norms = empty_rows(x, dtype)
    d0, d1 = two_parts(dim)
    tokens, num_warps = tile or (1, warps_of(dim))
    _rows_kernel[(triton.cdiv(scales.numel(), tokens),)](
        x.contiguous(), values, scales, norms, scales.numel(), D=dim, D0=d0, D1=d1, ROWS=tokens, GELU=gelu,
        num_warps=num_warps,
    )  # fmt: skip
    return values, scales, norms


def gated_sum(
    x_BTSD: Tensor,
    branch_BTSD: Tensor,
    gate: Tensor | None,
    *,
    keeps: bool,
    dtype: torch.dtype = FLOAT8,
    tile: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns x + gate * branch, the gated branch (empty unless it `keeps` it), and the sum's 8-bit values, scales, norms.

    `gate` None: the branch is gated already, and not written again. `tile`: as of `rows`.
    """
    dim = x_BTSD.shape[-1]
    x_BTSD, branch_BTSD = x_BTSD.contiguous(), branch_BTSD.contiguous()
    gating = x_BTSD if gate is None else gate.contiguous()
    keeps = keeps and gate is not None
    total = torch.empty_like(x_BTSD)
    gated = torch.empty_like(x_BTSD) if keeps else x_BTSD.new_empty(0)
    values, scales, norms = empty_rows(x_BTSD, dtype)
    d0, d1 = two_parts(dim)
    tokens, num_warps = tile or (1, warps_of(dim))
    _gated_sum_kernel[(triton.cdiv(scales.numel(), tokens),)](
        x_BTSD, branch_BTSD, gating, total, gated, values, scales, norms, scales.numel(),
        scales.numel() // (gating.numel() // dim), D=dim, D0=d0, D1=d1, ROWS=tokens, KEEPS=keeps,
        GATES=gate is not None, num_warps=num_warps,
    )  # fmt: skip
    return total, gated, values, scales, norms


def empty_rows(x: Tensor, dtype: torch.dtype = FLOAT8) -> tuple[Tensor, Tensor, Tensor]:
    """Returns room for the 8-bit values, the scales and the norms of x."""
    scales = x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
    return x.new_empty(x.shape, dtype=dtype), scales, torch.empty_like(scales)
