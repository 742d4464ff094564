"""Moments of groups of channels, and their norm with SiLU, over rows of channels that lie side by side in memory.

Kernels are compiled once for each number of channels, whatever the size of the pictures. A clip is cut into parts by its own
size alone, so that its numbers depend on no other clip beside it, nor on the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from pab.kernels.group_norm import Moments, Norm

ELEMENTS = 4096
"""Values that a program has at once."""
MOST_PARTS = 1024


@triton.jit(do_not_specialize=["rows", "rows_per_part"])
def _moments(x, y, shift, out, parts, rows, rows_per_part, C: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr,
             ADDS: tl.constexpr):  # fmt: skip
    part, num_parts = tl.program_id(0), tl.num_programs(0)
    clip = tl.program_id(1).to(tl.int64)
    channel, group = tl.arange(0, C), tl.arange(0, G)
    first = part * rows_per_part
    start = clip * rows * C
    bias = tl.load(shift + channel).to(tl.float32)
    # Sums are those of differences from the part's first row, which lose nothing where the mean is far from zero.
    at_first = start + first.to(tl.int64) * C + channel
    near = tl.load(x + at_first).to(tl.float32) + bias
    if ADDS:
        near += tl.load(y + at_first).to(tl.float32)
    total = tl.zeros([ROWS, C], tl.float32)
    squares = tl.zeros([ROWS, C], tl.float32)
    for done in range(0, rows_per_part, ROWS):
        row = first + done + tl.arange(0, ROWS)
        inside = (row < rows)[:, None]
        at = start + row.to(tl.int64)[:, None] * C + channel[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + bias[None, :]
        if ADDS:
            value += tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
            rounded = value.to(out.dtype.element_ty)
            tl.store(out + at, rounded, mask=inside)
            value = rounded.to(tl.float32)
        apart = tl.where(inside, value - near[None, :], 0.0)
        total += apart
        squares += apart * apart
    count = tl.minimum(rows - first, rows_per_part).to(tl.float32)
    total_C, squares_C = tl.sum(total, axis=0), tl.sum(squares, axis=0)
    mean = tl.reshape(near + total_C / count, [G, C // G])
    deviation = tl.reshape(squares_C - total_C * total_C / count, [G, C // G])
    mean_G = tl.sum(mean, axis=1) / (C // G)
    apart_G = mean - mean_G[:, None]
    deviation_G = tl.sum(deviation, axis=1) + count * tl.sum(apart_G * apart_G, axis=1)
    place = parts + (clip * 2 * num_parts + part) * G + group
    tl.store(place, mean_G)
    tl.store(place + num_parts * G, deviation_G)


@triton.jit(do_not_specialize=["rows", "rows_per_part", "num_parts"])
def _finish(parts, weight, bias, shift, affine, rows, rows_per_part, num_parts, eps, C: tl.constexpr,
            G: tl.constexpr, PARTS: tl.constexpr):  # fmt: skip
    group, clip = tl.program_id(0), tl.program_id(1).to(tl.int64)
    part = tl.arange(0, PARTS)
    inside = part < num_parts
    count = tl.minimum(rows - part * rows_per_part, rows_per_part)
    count = tl.where(inside, count, 0).to(tl.float32) * (C // G)
    place = parts + (clip * 2 * num_parts + part) * G + group
    mean = tl.load(place, mask=inside, other=0.0)
    deviation = tl.load(place + num_parts * G, mask=inside, other=0.0)
    places = tl.sum(count, axis=0)
    whole = tl.sum(count * mean, axis=0) / places
    apart = mean - whole
    variance = (tl.sum(deviation, axis=0) + tl.sum(count * apart * apart, axis=0)) / places
    channel = group * (C // G) + tl.arange(0, C // G)
    scale = tl.load(weight + channel).to(tl.float32) / tl.sqrt(variance + eps)
    offset = tl.load(bias + channel).to(tl.float32) + (tl.load(shift + channel).to(tl.float32) - whole) * scale
    tl.store(affine + clip * 2 * C + channel, scale)
    tl.store(affine + clip * 2 * C + C + channel, offset)


@triton.jit(do_not_specialize=["rows", "frame_rows"])
def _normed(x, affine, out, rows, frame_rows, C: tl.constexpr, ROWS: tl.constexpr, SILU: tl.constexpr,
            TAPS: tl.constexpr):  # fmt: skip
    clip = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, C)
    scale = tl.load(affine + clip * 2 * C + channel)
    offset = tl.load(affine + clip * 2 * C + C + channel)
    inside = row < rows
    at = (clip * rows + row.to(tl.int64))[:, None] * C + channel[None, :]
    value = tl.load(x + at, mask=inside[:, None], other=0.0).to(tl.float32) * scale[None, :] + offset[None, :]
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    rounded = value.to(out.dtype.element_ty)
    for tap in tl.static_range(TAPS):
        later = (TAPS - 1 - tap) * frame_rows
        target = (clip * rows + later + row.to(tl.int64))[:, None] * (TAPS * C) + tap * C + channel[None, :]
        tl.store(out + target, rounded, mask=(row < rows - later)[:, None])
        if tap < TAPS - 1:
            empty = (clip * rows + row.to(tl.int64))[:, None] * (TAPS * C) + tap * C + channel[None, :]
            tl.store(out + empty, tl.zeros_like(rounded), mask=(inside & (row < later))[:, None])


def moments(
    x_NCHW: Tensor,
    y_NCHW: Tensor | None,
    *,
    groups: int,
    clips: int,
    shift: Tensor | None,
    elements: int = ELEMENTS,
    most_parts: int = MOST_PARTS,
    warps: int = 4,
) -> tuple[Tensor, Tensor, int]:
    """Returns x, or x + y + shift, with channels last in memory; `parts` and `rows_per_part` of its `Moments`.

    Without y the moments are those of x + shift.
    """
    x_NCHW = x_NCHW.contiguous(memory_format=torch.channels_last)
    out = x_NCHW
    if y_NCHW is not None:
        y_NCHW = y_NCHW.contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x_NCHW)
    channels, rows, block = _layout(x_NCHW, clips, elements)
    rows_per_part = block * triton.cdiv(triton.cdiv(rows, block), most_parts)
    num_parts = triton.cdiv(rows, rows_per_part)
    parts = torch.empty(clips, 2, num_parts, groups, dtype=torch.float32, device=x_NCHW.device)
    _moments[(num_parts, clips)](
        x_NCHW, x_NCHW if y_NCHW is None else y_NCHW, _shift(shift, channels, x_NCHW), out, parts, rows,
        rows_per_part, C=channels, G=groups, ROWS=block, ADDS=y_NCHW is not None, num_warps=warps,
    )  # fmt: skip
    return out, parts, rows_per_part


def normed(x_NCHW: Tensor, found: Moments, norm: Norm, *, silu: bool, taps: int, shift: Tensor | None) -> Tensor:
    """Returns [N, taps * C, H, W] with channels last in memory."""
    x_NCHW = x_NCHW.contiguous(memory_format=torch.channels_last)
    clips, num_parts, groups = found.clips, found.parts.shape[2], norm.groups
    channels, rows, block = _layout(x_NCHW, clips, ELEMENTS)
    affine = torch.empty(clips, 2, channels, dtype=torch.float32, device=x_NCHW.device)
    _finish[(groups, clips)](
        found.parts, norm.weight, norm.bias, _shift(shift, channels, x_NCHW), affine, rows, found.rows_per_part,
        num_parts, norm.eps, C=channels, G=groups, PARTS=triton.next_power_of_2(num_parts), num_warps=4,
    )  # fmt: skip
    count, _, height, width = x_NCHW.shape
    out = torch.empty(
        count, taps * channels, height, width, dtype=x_NCHW.dtype, device=x_NCHW.device,
        memory_format=torch.channels_last,
    )  # fmt: skip
    _normed[(triton.cdiv(rows, block), clips)](
        x_NCHW, affine, out, rows, height * width, C=channels, ROWS=block, SILU=silu, TAPS=taps, num_warps=4
    )
    return out


def _shift(shift: Tensor | None, channels: int, x_NCHW: Tensor) -> Tensor:
    """Returns what is added to every place, of one precision: each other one would be compiled anew."""
    wide = torch.float32
    return torch.zeros(channels, dtype=wide, device=x_NCHW.device) if shift is None else shift.to(wide)


def _layout(x_NCHW: Tensor, clips: int, elements: int) -> tuple[int, int, int]:
    """Returns channels, rows of a clip, and rows that a program has at once."""
    count, channels, height, width = x_NCHW.shape
    return channels, count // clips * height * width, max(1, elements // channels)
