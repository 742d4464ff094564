"""RMS norm over all heads of a token and rotary embedding, in one pass over the tokens: a program has one token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pab.kernels.gpu.float8 import FLOAT8
from pab.kernels.gpu.widths import two_parts


@triton.jit
def _rotated(x, weight, cosines, sines, inverse, at, table_at, channel, inside, WIDTH: tl.constexpr):
    kind = x.dtype.element_ty
    # The other channel of the pair lies beside this one, in the same line of the cache.
    other = channel ^ 1
    own = tl.load(x + at + channel, mask=inside, other=0.0).to(tl.float32) * inverse
    own = own * tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    pair = tl.load(x + at + other, mask=inside, other=0.0).to(tl.float32) * inverse
    pair = pair * tl.load(weight + other, mask=inside, other=0.0).to(tl.float32)
    # Rounded between norm and rotation, as the two one by one are.
    own = own.to(kind).to(tl.float32)
    pair = pair.to(kind).to(tl.float32)
    pair = tl.where(channel % 2 == 0, -pair, pair)
    cosine = tl.load(cosines + table_at + channel % WIDTH, mask=inside, other=0.0)
    sine = tl.load(sines + table_at + channel % WIDTH, mask=inside, other=0.0)
    return (own * cosine + pair * sine).to(kind).to(tl.float32)


@triton.jit
def _kernel(x, weight, cosines, sines, bound, out, table_rows, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
            WIDTH: tl.constexpr, EPS: tl.constexpr, EIGHT: tl.constexpr):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    at = token * D
    table_at = (token % table_rows) * WIDTH
    # A width that is no power of two is read as two parts: 5120 as 4096 + 1024.
    a = tl.arange(0, D0)
    b = D0 + tl.arange(0, D1)
    inside_a = a < D
    inside_b = b < D
    part_a = tl.load(x + at + a, mask=inside_a, other=0.0).to(tl.float32)
    part_b = tl.load(x + at + b, mask=inside_b, other=0.0).to(tl.float32)
    inverse = tl.rsqrt((tl.sum(part_a * part_a, axis=0) + tl.sum(part_b * part_b, axis=0)) / D + EPS)
    part_a = _rotated(x, weight, cosines, sines, inverse, at, table_at, a, inside_a, WIDTH)
    part_b = _rotated(x, weight, cosines, sines, inverse, at, table_at, b, inside_b, WIDTH)
    if EIGHT:
        scale = 448.0 / tl.load(bound)
        part_a = part_a * scale
        part_b = part_b * scale
    tl.store(out + at + a, part_a.to(out.dtype.element_ty), mask=inside_a)
    tl.store(out + at + b, part_b.to(out.dtype.element_ty), mask=inside_b)


def launch(
    x_BPD: Tensor,
    weight: Tensor,
    cosines: Tensor,
    sines: Tensor,
    *,
    heads: int,
    eps: float,
    bound: Tensor | None,
    eight: torch.dtype = FLOAT8,
    warps: int = 4,
) -> Tensor:
    """Returns [B, P, heads, C] in the dtype of x, or with a `bound` as 8-bit floats.

    `eight`: another dtype than that of 8-bit floats shows what is rounded.
    """
    batch, places, dim = x_BPD.shape
    x_BPD, cosines, sines = x_BPD.contiguous(), cosines.contiguous(), sines.contiguous()
    dtype = x_BPD.dtype if bound is None else eight
    out = x_BPD.new_empty(batch, places, heads, dim // heads, dtype=dtype)
    width = cosines.shape[-1]
    d0, d1 = two_parts(dim)
    _kernel[(batch * places,)](
        x_BPD, weight, cosines, sines, weight if bound is None else bound, out, cosines.numel() // width, D=dim,
        D0=d0, D1=d1, WIDTH=width, EPS=eps, EIGHT=bound is not None, num_warps=warps,
    )  # fmt: skip
    return out
