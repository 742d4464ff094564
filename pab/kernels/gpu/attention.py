"""Attention for head sizes that are no power of two: a head of 72 is computed as 64 + 16 channels, not as 128.

Queries, keys and values are read where they lie, and the output has the layout that the projection wants.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pab.kernels.gpu.widths import head_parts

LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """How the work is cut: queries and keys per step of a program, warps, stages of the pipeline."""

    queries: int = 128
    keys: int = 64
    num_warps: int = 4
    num_stages: int = 3


FASTEST = Tile(queries=64, keys=32, num_warps=4, num_stages=2)
"""Of those that `benchmarks.open_sora_gpu --tiles` tries, on an H200."""


@triton.jit
def _step(q0, q1, acc0, acc1, largest, total, k, v, counts, start, num_keys, key_stride, value_stride,
          HD: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, SPLIT: tl.constexpr, KEYS: tl.constexpr,
          CUT: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Takes one tile of keys into account. CUT: the tile may reach beyond the last key."""
    key = start + tl.arange(0, KEYS)
    a = tl.arange(0, D0)
    b = D0 + tl.arange(0, D1)
    seen = key < num_keys
    k_at = k + (key * key_stride)[:, None]
    v_at = v + (key * value_stride)[:, None]
    b_inside = (b < HD)[None, :]
    if CUT:
        k0 = tl.load(k_at + a[None, :], mask=seen[:, None], other=0.0)
        v0 = tl.load(v_at + a[None, :], mask=seen[:, None], other=0.0)
        b_inside = b_inside & seen[:, None]
    else:
        k0 = tl.load(k_at + a[None, :])
        v0 = tl.load(v_at + a[None, :])
    kind = v0.dtype
    scores = tl.dot(q0, tl.trans(k0), input_precision=PRECISION)
    if SPLIT:
        k1 = tl.load(k_at + b[None, :], mask=b_inside, other=0.0)
        scores = tl.dot(q1, tl.trans(k1), scores, input_precision=PRECISION)
    if MASKED:
        seen = seen & (tl.load(counts + key, mask=seen, other=0) != 0)
    if CUT or MASKED:
        scores = tl.where(seen[None, :], scores, -1.0e30)
    new_largest = tl.maximum(largest, tl.max(scores, axis=1))
    weights = tl.exp2(scores - new_largest[:, None])
    fade = tl.exp2(largest - new_largest)
    total = total * fade + tl.sum(weights, axis=1)
    acc0 = acc0 * fade[:, None]
    weights = weights.to(kind)
    acc0 = tl.dot(weights, v0, acc0, input_precision=PRECISION)
    if SPLIT:
        v1 = tl.load(v_at + b[None, :], mask=b_inside, other=0.0)
        acc1 = acc1 * fade[:, None]
        acc1 = tl.dot(weights, v1, acc1, input_precision=PRECISION)
    return acc0, acc1, new_largest, total


# The text's length changes from clip to clip: one kernel for all of them.
@triton.jit(do_not_specialize=["num_keys"])
def _kernel(q, k, v, out, counts, lengths, num_queries, num_keys, query_blocks,
            q_row, q_token, k_row, k_token, v_row, v_token, scale,
            HEADS: tl.constexpr, HD: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, SPLIT: tl.constexpr,
            QUERIES: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    head = tl.program_id(0) % HEADS
    block = tl.program_id(0) // HEADS
    row = (block // query_blocks).to(tl.int64)
    query = (block % query_blocks) * QUERIES + tl.arange(0, QUERIES)
    a = tl.arange(0, D0)
    b = D0 + tl.arange(0, D1)
    seen = (query < num_queries)[:, None]
    b_inside = (b < HD)[None, :] & seen
    q_at = q + row * q_row + head * HD + (query * q_token)[:, None]
    q0 = tl.load(q_at + a[None, :], mask=seen, other=0.0)
    kind = q0.dtype
    q0 = q0.to(tl.float32)
    q1 = tl.load(q_at + b[None, :], mask=b_inside, other=0.0).to(tl.float32)  # zeros where nothing is left over
    q0 = (q0 * scale).to(kind)
    q1 = (q1 * scale).to(kind)
    # The heads of a token lie side by side: a constant stride lets 16 bytes be read at once, an argument of 72 does not.
    k += row * k_row + head * HD
    v += row * v_row + head * HD
    counts += row * num_keys
    last = num_keys
    if MASKED:
        last = tl.load(lengths + row)
    largest = tl.full((QUERIES,), -1.0e30, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    acc0 = tl.zeros((QUERIES, D0), tl.float32)
    acc1 = tl.zeros((QUERIES, D1), tl.float32)
    whole = last // KEYS * KEYS
    for start in range(0, whole, KEYS):
        acc0, acc1, largest, total = _step(
            q0, q1, acc0, acc1, largest, total, k, v, counts, start, last, k_token, v_token,
            HD, D0, D1, SPLIT, KEYS, False, MASKED, PRECISION,
        )  # fmt: skip
    if whole < last:
        acc0, acc1, largest, total = _step(
            q0, q1, acc0, acc1, largest, total, k, v, counts, whole, last, k_token, v_token,
            HD, D0, D1, SPLIT, KEYS, True, MASKED, PRECISION,
        )  # fmt: skip
    out_at = out + ((row * num_queries + query) * (HEADS * HD))[:, None] + head * HD
    tl.store(out_at + a[None, :], (acc0 / total[:, None]).to(kind), mask=seen)
    if SPLIT:
        tl.store(out_at + b[None, :], (acc1 / total[:, None]).to(kind), mask=b_inside)


def launch(
    q_NLHC: Tensor,
    k_NLHC: Tensor,
    v_NLHC: Tensor,
    *,
    mask: tuple[Tensor, Tensor] | None = None,
    tile: Tile,
) -> Tensor:
    """Returns [N, queries, heads * head_dim]. Tensors may be views in which the heads of a token lie side by side.

    `mask`: bool [N, L] of the keys that count, int32 [N] one more than the last of
    them.
    """
    rows, num_queries, num_heads, head_dim = q_NLHC.shape
    num_keys = k_NLHC.shape[1]
    assert head_dim >= 16, f"head_dim={head_dim}, a matrix product takes 16 or more"
    for x in (q_NLHC, k_NLHC, v_NLHC):
        assert x.stride()[2:] == (head_dim, 1), "the heads of a token must lie side by side"
    out = q_NLHC.new_empty(rows, num_queries, num_heads * head_dim)
    d0, d1 = head_parts(head_dim)
    counts, lengths = mask or (out, out)
    blocks = triton.cdiv(num_queries, tile.queries)
    _kernel[(blocks * num_heads * rows,)](
        q_NLHC, k_NLHC, v_NLHC, out, counts, lengths, num_queries, num_keys, blocks,
        q_NLHC.stride(0), q_NLHC.stride(1), k_NLHC.stride(0), k_NLHC.stride(1), v_NLHC.stride(0), v_NLHC.stride(1),
        LOG2_E * head_dim**-0.5, HEADS=num_heads, HD=head_dim, D0=d0, D1=d1, SPLIT=d0 < head_dim,
        QUERIES=tile.queries, KEYS=tile.keys, MASKED=mask is not None,
        PRECISION="ieee" if q_NLHC.dtype == torch.float32 else "tf32", num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return out
