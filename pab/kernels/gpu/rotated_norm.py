"""RMS norm over all heads of a token and rotary embedding, in one pass over the tokens: a program has one token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pab.kernels.gpu.float8 import FLOAT8
from pab.kernels.gpu.widths import two_parts


@triton.jit
def _rotated(part, weight, cosines, sines, inverse, table_at, channel, inside, KIND: tl.constexpr, N: tl.constexpr,
             WIDTH: tl.constexpr):  # fmt: skip
    normed = part * inverse * tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    # Rounded between norm and rotation, as the two one by one are.
    normed = normed.to(KIND).to(tl.float32)
    # The other channel of a pair is in a register of the same thread.
    even, odd = tl.split(tl.reshape(normed, (N // 2, 2)))
    turned = tl.reshape(tl.join(-odd, even), (N,))
    cosine = tl.load(cosines + table_at + channel % WIDTH, mask=inside, other=0.0)
    sine = tl.load(sines + table_at + channel % WIDTH, mask=inside, other=0.0)
    return (normed * cosine + turned * sine).to(KIND).to(tl.float32)


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
    kind: tl.constexpr = x.dtype.element_ty
    part_a = _rotated(part_a, weight, cosines, sines, inverse, table_at, a, inside_a, kind, D0, WIDTH)
    part_b = _rotated(part_b, weight, cosines, sines, inverse, table_at, b, inside_b, kind, D1, WIDTH)
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
