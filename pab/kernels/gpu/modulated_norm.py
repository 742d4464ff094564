"""Layer norm with modulation, and the residual sums before it, in one pass over the tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from pab.kernels.gpu.float8 import FLOAT8, empty_rows, rounded, row_norm, scale_of
from pab.kernels.gpu.widths import two_parts, warps_of


@triton.jit
def _summed(x, first, second, at, inside, ADDENDS: tl.constexpr):
    total = tl.load(x + at, mask=inside, other=0.0)
    kind = total.dtype
    total = total.to(tl.float32)
    # Rounded after every sum, as the sums one by one are.
    if ADDENDS > 0:
        total = (total + tl.load(first + at, mask=inside, other=0.0).to(tl.float32)).to(kind).to(tl.float32)
    if ADDENDS > 1:
        total = (total + tl.load(second + at, mask=inside, other=0.0).to(tl.float32)).to(kind).to(tl.float32)
    return total


@triton.jit
def _modulated(normed, shift, scale, at, channel, inside):
    shift = tl.load(shift + at + channel, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(scale + at + channel, mask=inside, other=0.0).to(tl.float32)
    return normed * (1.0 + scale) + shift


@triton.jit
def _kernel(x, first, second, ahead, total, out, out_scales, out_norms, shift, scale, num_tokens, per_group,
            D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, ROWS: tl.constexpr, ADDENDS: tl.constexpr,
            AHEAD: tl.constexpr, EPS: tl.constexpr, EIGHT: tl.constexpr):  # fmt: skip
    """AHEAD: `ahead` is added to the sum. EIGHT: the norm is written as rows of 8-bit floats, with their scales and norms."""
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    seen = (token < num_tokens)[:, None]
    at = (token.to(tl.int64) * D)[:, None]
    group = ((token // per_group) * D)[:, None]
    # A width that is no power of two is read as two parts: 1152 as 1024 + 128.
    a = tl.arange(0, D0)[None, :]
    b = D0 + tl.arange(0, D1)[None, :]
    inside_a = seen & (a < D)
    inside_b = seen & (b < D)
    part_a = _summed(x, first, second, at + a, inside_a, ADDENDS)
    part_b = _summed(x, first, second, at + b, inside_b, ADDENDS)
    if ADDENDS > 0 or AHEAD:
        sum_a = part_a
        sum_b = part_b
        if AHEAD:
            sum_a += tl.load(ahead + a, mask=a < D, other=0.0).to(tl.float32)
            sum_b += tl.load(ahead + b, mask=b < D, other=0.0).to(tl.float32)
        tl.store(total + at + a, sum_a.to(total.dtype.element_ty), mask=inside_a)
        tl.store(total + at + b, sum_b.to(total.dtype.element_ty), mask=inside_b)
    mean = ((tl.sum(part_a, axis=1) + tl.sum(part_b, axis=1)) / D)[:, None]
    part_a = tl.where(inside_a, part_a - mean, 0.0)
    part_b = tl.where(inside_b, part_b - mean, 0.0)
    inverse = tl.rsqrt((tl.sum(part_a * part_a, axis=1) + tl.sum(part_b * part_b, axis=1)) / D + EPS)[:, None]
    part_a = _modulated(part_a * inverse, shift, scale, group, a, inside_a)
    part_b = _modulated(part_b * inverse, shift, scale, group, b, inside_b)
    if EIGHT:
        # Beyond the width stands the shift of nothing, zero.
        row_scale = scale_of(part_a, part_b)
        tl.store(out_scales + token[:, None], row_scale, mask=seen)
        tl.store(out_norms + token[:, None], row_norm(part_a, part_b), mask=seen)
        tl.store(out + at + a, rounded(part_a, row_scale, out), mask=inside_a)
        tl.store(out + at + b, rounded(part_b, row_scale, out), mask=inside_b)
    else:
        tl.store(out + at + a, part_a.to(out.dtype.element_ty), mask=inside_a)
        tl.store(out + at + b, part_b.to(out.dtype.element_ty), mask=inside_b)


def launch(
    x_BTSD: Tensor,
    addends: Sequence[Tensor],
    shift: Tensor,
    scale: Tensor,
    ahead: Tensor | None = None,
    *,
    eps: float,
    tile: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the sum (x itself without addends and `ahead`) and its modulated norm.

    `shift`, `scale`: [B, T or 1, 1, D], or ones for B. `tile`: tokens per program, warps (default: one, and what holds it).
    """
    out = torch.empty_like(x_BTSD, memory_format=torch.contiguous_format)
    return _launch(x_BTSD, addends, (shift, scale, ahead), out, None, eps=eps, tile=tile), out


def launch_rows(
    x_BTSD: Tensor,
    addends: Sequence[Tensor],
    shift: Tensor,
    scale: Tensor,
    *,
    eps: float,
    dtype: torch.dtype = FLOAT8,
    tile: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns what `launch` does, as 8-bit values [B, T, S, D], float32 scales [B, T, S, 1] and Euclidean norms of the rows.

    `dtype`: another one shows what is rounded.
    """
    values, scales, norms = empty_rows(x_BTSD.contiguous(), dtype)
    total = _launch(x_BTSD, addends, (shift, scale, None), values, (scales, norms), eps=eps, tile=tile)
    return total, values, scales, norms


def _launch(
    x_BTSD: Tensor,
    addends: Sequence[Tensor],
    vectors: tuple[Tensor, Tensor, Tensor | None],
    out: Tensor,
    of_rows: tuple[Tensor, Tensor] | None,
    *,
    eps: float,
    tile: tuple[int, int] | None,
) -> Tensor:
    dim = x_BTSD.shape[-1]
    shift, scale, ahead = vectors
    x_BTSD, shift, scale = x_BTSD.contiguous(), shift.contiguous(), scale.contiguous()
    addends = [addend.contiguous() for addend in addends]
    num_tokens = x_BTSD.numel() // dim
    rows, num_warps = tile or (1, warps_of(dim))
    total = torch.empty_like(x_BTSD) if addends or ahead is not None else x_BTSD
    first, second = (*addends, x_BTSD, x_BTSD)[:2]
    d0, d1 = two_parts(dim)
    out_scales, out_norms = of_rows or (out, out)
    _kernel[(triton.cdiv(num_tokens, rows),)](
        x_BTSD, first, second, x_BTSD if ahead is None else ahead.contiguous(), total, out,
        out_scales, out_norms, shift, scale, num_tokens, num_tokens // (shift.numel() // dim),
        D=dim, D0=d0, D1=d1, ROWS=rows, ADDENDS=len(addends), AHEAD=ahead is not None, EPS=eps,
        EIGHT=of_rows is not None, num_warps=num_warps,
    )  # fmt: skip
    return total
