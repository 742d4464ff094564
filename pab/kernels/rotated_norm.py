"""RMS norm over all heads of a token and rotary embedding of what it gives, for queries or keys, in one pass.

Shape letters: B rows, P tokens, D channels of all heads, H heads, C channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pab.kernels.operator import operator, shapes_of

FLOAT8 = torch.float8_e4m3fn
LARGEST = 448.0
Rotation = tuple[Tensor, Tensor]
"""Cosines and sines float32, of every head [1, P, 1, C] or of all channels [B or 1, P, D]."""


def plain(x_BPD: Tensor, weight: Tensor, rotation: Rotation, *, heads: int, eps: float) -> Tensor:
    """Returns [B, P, H, C]: pairs of channels (x0, x1), (x2, x3), ... of the normed token, rotated."""
    normed = F.rms_norm(x_BPD, (x_BPD.shape[-1],), weight, eps).unflatten(-1, (heads, -1))
    cosines, sines = (part if part.dim() == 4 else part.unflatten(-1, (heads, -1)) for part in rotation)
    pairs = normed.unflatten(-1, (-1, 2))
    turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    return (normed * cosines + turned * sines).to(x_BPD.dtype)


def to_float8(x: Tensor, bound: Tensor) -> Tensor:
    """Returns x as 8-bit floats of which 448 stands for `bound`, the largest magnitude that x may have."""
    return (x.float() * (LARGEST / bound)).clamp(-LARGEST, LARGEST).to(FLOAT8)


def norm_bound(weight: Tensor) -> Tensor:
    """Returns the largest magnitude that `plain` may give: that of a token whose one channel holds all."""
    return weight.float().abs().max() * weight.numel() ** 0.5


@operator("rotated_norm")
def _fused(
    x_BPD: Tensor, weight: Tensor, cosines: Tensor, sines: Tensor, heads: int, eps: float, bound: Tensor | None
) -> Tensor:
    if not x_BPD.is_cuda:
        out = plain(x_BPD, weight, (cosines, sines), heads=heads, eps=eps)
        return out if bound is None else to_float8(out, bound)
    from pab.kernels.gpu import rotated_norm as gpu

    return gpu.launch(x_BPD, weight, cosines, sines, heads=heads, eps=eps, bound=bound)


@shapes_of(_fused)
def _(
    x_BPD: Tensor, weight: Tensor, cosines: Tensor, sines: Tensor, heads: int, eps: float, bound: Tensor | None
) -> Tensor:
    batch, places, dim = x_BPD.shape
    dtype = x_BPD.dtype if bound is None else FLOAT8
    return x_BPD.new_empty(batch, places, heads, dim // heads, dtype=dtype)


def fused(
    x_BPD: Tensor, weight: Tensor, rotation: Rotation, *, heads: int, eps: float, bound: Tensor | None = None
) -> Tensor:
    """Does what `plain` does, on a GPU in one Triton kernel; with a `bound` also what `to_float8` does. No gradients."""
    return _fused(x_BPD, weight, *rotation, heads, eps, bound)
