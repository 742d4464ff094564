"""The softmax of scaled scores: a program has a row, read once in float32 and written once in 16 bits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _kernel(scores, out, keys, scale, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * keys
    key = tl.arange(0, WIDTH)
    inside = key < keys
    value = tl.load(scores + row + key, mask=inside, other=float("-inf"))
    value = tl.exp((value - tl.max(value, axis=0)) * scale)
    value = value / tl.sum(value, axis=0)
    tl.store(out + row + key, value.to(out.dtype.element_ty), mask=inside)


def launch(scores: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Returns the softmax of `scale` times scores over their last dim, in `dtype`. `scale` is positive."""
    keys = scores.shape[-1]
    out = torch.empty(scores.shape, dtype=dtype, device=scores.device)
    _kernel[(scores.numel() // keys,)](
        scores.contiguous(), out, keys, scale, WIDTH=triton.next_power_of_2(keys), num_warps=8
    )
    return out
