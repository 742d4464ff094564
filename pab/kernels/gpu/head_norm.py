"""Query and key norm in one pass over a fused QKV: the 2 H heads of a token's queries and keys are rows side by side."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pab.kernels.gpu.widths import head_parts


@triton.jit
def _kernel(qkv, out, q_weight, k_weight, num_rows, num_tokens,
            HEADS: tl.constexpr, HD: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, SPLIT: tl.constexpr,
            ROWS: tl.constexpr, EPS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = (row // (2 * HEADS)).to(tl.int64)
    part = row % (2 * HEADS)
    is_key = part // HEADS
    at = (token * (3 * HEADS) + part) * HD
    out_at = ((is_key * num_tokens + token) * HEADS + part % HEADS) * HD
    # A head of 72 is 64 + 8 channels.
    a = tl.arange(0, D0)
    b = D0 + tl.arange(0, D1)
    inside_a = (row < num_rows)[:, None] & (a < HD)[None, :]
    part_a = tl.load(qkv + at[:, None] + a[None, :], mask=inside_a, other=0.0).to(tl.float32)
    squares = tl.sum(part_a * part_a, axis=1)
    if SPLIT:
        inside_b = (row < num_rows)[:, None] & (b < HD)[None, :]
        part_b = tl.load(qkv + at[:, None] + b[None, :], mask=inside_b, other=0.0).to(tl.float32)
        squares += tl.sum(part_b * part_b, axis=1)
    inverse = tl.rsqrt(squares / HD + EPS)[:, None]
    for_key = (is_key > 0)[:, None]
    q = tl.load(q_weight + a, mask=a < HD, other=0.0).to(tl.float32)[None, :]
    k = tl.load(k_weight + a, mask=a < HD, other=0.0).to(tl.float32)[None, :]
    part_a = part_a * inverse * tl.where(for_key, k, q)
    tl.store(out + out_at[:, None] + a[None, :], part_a.to(out.dtype.element_ty), mask=inside_a)
    if SPLIT:
        q = tl.load(q_weight + b, mask=b < HD, other=0.0).to(tl.float32)[None, :]
        k = tl.load(k_weight + b, mask=b < HD, other=0.0).to(tl.float32)[None, :]
        part_b = part_b * inverse * tl.where(for_key, k, q)
        tl.store(out + out_at[:, None] + b[None, :], part_b.to(out.dtype.element_ty), mask=inside_b)


def launch(
    qkv_NLE: Tensor,
    num_heads: int,
    norm: tuple[Tensor, Tensor],
    eps: float,
    tile: tuple[int, int] = (16, 1),
) -> Tensor:
    """Returns normalised queries and keys [2, N, L, heads, head_dim]. `tile`: heads per program, warps."""
    sequences, length, width = qkv_NLE.shape
    head_dim = width // 3 // num_heads
    out = qkv_NLE.new_empty(2, sequences, length, num_heads, head_dim)
    num_tokens = sequences * length
    num_rows = num_tokens * 2 * num_heads
    d0, d1 = head_parts(head_dim)
    rows, num_warps = tile
    _kernel[(triton.cdiv(num_rows, rows),)](
        qkv_NLE.contiguous(), out, *norm, num_rows, num_tokens, HEADS=num_heads, HD=head_dim, D0=d0, D1=d1,
        SPLIT=d0 < head_dim, ROWS=rows, EPS=eps, num_warps=num_warps,
    )  # fmt: skip
    return out
