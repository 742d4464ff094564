"""RMS norm over channels that lie side by side in memory, and SiLU: a program has some pixels, all of their channels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 4096
"""Values of a program."""


@triton.jit
def _kernel(x, weight, out, num_pixels, root, smallest, C: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
            SILU: tl.constexpr):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)
    inside = (pixel < num_pixels)[:, None] & (channel < C)[None, :]
    at = pixel[:, None] * C + channel[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    norm = tl.maximum(tl.sqrt(tl.sum(value * value, axis=1)), smallest)
    value = (
        value * (root / norm)[:, None] * tl.load(weight + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]
    )
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


def launch(x: Tensor, weight: Tensor, *, silu: bool, smallest: float) -> Tensor:
    """Returns the norm of x [B, C, T, H, W] or [B, C, H, W], with channels last in memory."""
    form = torch.channels_last_3d if x.dim() == 5 else torch.channels_last
    x = x.contiguous(memory_format=form)
    out = torch.empty_like(x, memory_format=torch.preserve_format)
    channels = x.shape[1]
    width = triton.next_power_of_2(channels)
    rows, num_pixels = max(1, ELEMENTS // width), x.numel() // channels
    _kernel[(triton.cdiv(num_pixels, rows),)](
        x, weight.contiguous().view(-1), out, num_pixels, channels**0.5, smallest, C=channels, WIDTH=width, ROWS=rows,
        SILU=silu, num_warps=4,
    )  # fmt: skip
    return out
