"""Attention over the frames of each patch, read out of the fused QKV in place: norm, rotation and softmax inside.

One program takes one head of a few neighbouring patches. The frames of a patch lie S tokens apart, so nothing is
transposed in memory, and what comes out has the layout that the projection wants.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pab.kernels.gpu.widths import head_parts

LOG2_E = 1.4426950408889634
Tile = tuple[int, int, int | None]
"""Patches of a program, its warps, and registers of a thread at most; None leaves those to the compiler."""


@triton.jit
def _turned(x, channel, half, weight, cosines, sines, angle_at, seen, HD: tl.constexpr, NORM: tl.constexpr,
            ROTATE: tl.constexpr):  # fmt: skip
    """Weighs channels and rotates their pairs. `half`: the first channel of every pair."""
    if NORM:
        x = x * tl.load(weight + channel, mask=channel < HD, other=0.0).to(tl.float32)[None, :]
    if ROTATE:
        known = seen[:, None] & (half < HD)[None, :]
        cosine = tl.load(cosines + angle_at[:, None] + half[None, :], mask=known, other=0.0)
        sine = tl.load(sines + angle_at[:, None] + half[None, :], mask=known, other=0.0)
        even, odd = tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 2, 2)))
        turned = tl.join(even * cosine - odd * sine, odd * cosine + even * sine)
        x = tl.reshape(turned, (x.shape[0], x.shape[1]))
    return x


@triton.jit
def _loaded(x, at, a, b, half_a, half_b, weight, cosines, sines, angle_at, seen, HD: tl.constexpr, NORM: tl.constexpr,
            ROTATE: tl.constexpr, EPS: tl.constexpr):  # fmt: skip
    """Returns a tile of one head, weighed and rotated, in two parts of its channels, and every row's factor of the norm.

    A factor of a whole row may wait for the scores, which are fewer than the channels.
    """
    part_a = tl.load(x + at[:, None] + a[None, :], mask=seen[:, None] & (a < HD)[None, :], other=0.0)
    part_b = tl.load(x + at[:, None] + b[None, :], mask=seen[:, None] & (b < HD)[None, :], other=0.0)
    kind = part_a.dtype
    part_a = part_a.to(tl.float32)
    part_b = part_b.to(tl.float32)
    factor = seen.to(tl.float32)
    if NORM:
        squares = tl.sum(part_a * part_a, axis=1) + tl.sum(part_b * part_b, axis=1)
        factor = tl.rsqrt(squares / HD + EPS)
    part_a = _turned(part_a, a, half_a, weight, cosines, sines, angle_at, seen, HD, NORM, ROTATE)
    part_b = _turned(part_b, b, half_b, weight, cosines, sines, angle_at, seen, HD, NORM, ROTATE)
    return part_a.to(kind), part_b.to(kind), factor


@triton.jit
def _kernel(qkv, out, q_weight, k_weight, cosines, sines, num_frames, num_patches, blocks, scale,
            HEADS: tl.constexpr, HD: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, SPLIT: tl.constexpr,
            FRAMES: tl.constexpr, PACK: tl.constexpr, NORM: tl.constexpr, ROTATE: tl.constexpr, EPS: tl.constexpr,
            PRECISION: tl.constexpr):  # fmt: skip
    program = tl.program_id(0)
    head = program % HEADS
    block = program // HEADS
    row_of_tile = tl.arange(0, FRAMES * PACK)
    frame = row_of_tile % FRAMES
    patch = (block % blocks) * PACK + row_of_tile // FRAMES
    seen = (frame < num_frames) & (patch < num_patches)
    token = ((block // blocks).to(tl.int64) * num_frames + frame) * num_patches + patch
    at = token * (3 * HEADS * HD) + head * HD
    # A head of 72 is 64 + 8 channels.
    a = tl.arange(0, D0)
    b = D0 + tl.arange(0, D1)
    half_a = 2 * tl.arange(0, D0 // 2)
    half_b = D0 + 2 * tl.arange(0, D1 // 2)
    q0, q1, q_factor = _loaded(
        qkv, at, a, b, half_a, half_b, q_weight, cosines, sines, frame * HD, seen, HD, NORM, ROTATE, EPS
    )  # fmt: skip
    k0, k1, k_factor = _loaded(
        qkv, at + HEADS * HD, a, b, half_a, half_b, k_weight, cosines, sines, frame * HD, seen, HD, NORM, ROTATE, EPS
    )  # fmt: skip
    at += 2 * HEADS * HD
    inside_a = seen[:, None] & (a < HD)[None, :]
    inside_b = seen[:, None] & (b < HD)[None, :]
    v0 = tl.load(qkv + at[:, None] + a[None, :], mask=inside_a, other=0.0)
    v1 = tl.load(qkv + at[:, None] + b[None, :], mask=inside_b, other=0.0)
    scores = tl.dot(q0, tl.trans(k0), input_precision=PRECISION)
    if SPLIT:
        scores = tl.dot(q1, tl.trans(k1), scores, input_precision=PRECISION)
    together = seen[None, :] & (row_of_tile[:, None] // FRAMES == row_of_tile[None, :] // FRAMES)
    if NORM:
        scores = scores * q_factor[:, None] * k_factor[None, :]
    scores = tl.where(together, scores * scale, -1.0e30)
    weights = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
    inverse = 1.0 / tl.sum(weights, axis=1)[:, None]
    weights = weights.to(v0.dtype)
    out_at = out + (token * (HEADS * HD) + head * HD)[:, None]
    mixed = tl.dot(weights, v0, input_precision=PRECISION) * inverse
    tl.store(out_at + a[None, :], mixed.to(v0.dtype), mask=inside_a)
    if SPLIT:
        mixed = tl.dot(weights, v1, input_precision=PRECISION) * inverse
        tl.store(out_at + b[None, :], mixed.to(v0.dtype), mask=inside_b)


def launch(
    qkv_BTSE: Tensor,
    num_heads: int,
    norm: tuple[Tensor, Tensor] | None,
    rotation: tuple[Tensor, Tensor] | None,
    eps: float,
    tile: Tile | None = None,
) -> Tensor:
    """Returns the attended values [B, T, S, D] of a fused QKV [B, T, S, 3 D]."""
    rows, num_frames, num_patches, width = qkv_BTSE.shape
    qkv_BTSE = qkv_BTSE.contiguous()
    dim = width // 3
    head_dim = dim // num_heads
    frames = max(16, triton.next_power_of_2(num_frames))
    pack, num_warps, registers = tile or default_tile(frames)
    out = qkv_BTSE.new_empty(rows, num_frames, num_patches, dim)
    blocks = triton.cdiv(num_patches, pack)
    d0, d1 = head_parts(head_dim)
    q_weight, k_weight = norm or (qkv_BTSE, qkv_BTSE)
    cosines, sines = rotation or (qkv_BTSE, qkv_BTSE)
    _kernel[(rows * blocks * num_heads,)](
        qkv_BTSE, out, q_weight, k_weight, cosines, sines, num_frames, num_patches, blocks,
        LOG2_E * head_dim**-0.5, HEADS=num_heads, HD=head_dim, D0=d0, D1=d1, SPLIT=d0 < head_dim, FRAMES=frames,
        PACK=pack, NORM=norm is not None, ROTATE=rotation is not None, EPS=eps,
        PRECISION="ieee" if qkv_BTSE.dtype == torch.float32 else "tf32", num_warps=num_warps,
        maxnreg=registers,
    )  # fmt: skip
    return out


def default_tile(frames: int) -> Tile:
    """Returns how the work is cut for a power of two of frames."""
    return (1, 1, None) if frames == 16 else (1, 2, None) if frames == 32 else (1, 4, None)
