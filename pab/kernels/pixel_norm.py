"""RMS norm over the channels of every pixel, with or without SiLU, as decoders of videos have it between convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pab.kernels.operator import operator, shapes_of

SMALLEST_NORM = 1e-12


def plain(x: Tensor, weight: Tensor, *, silu: bool) -> Tensor:
    """Returns x [B, C, ...] over the root mean square of its channels, times `weight` [C]; computed in float32."""
    wide = F.normalize(x.float(), dim=1, eps=SMALLEST_NORM) * x.shape[1] ** 0.5
    wide = wide * weight.float().view(-1, *(1,) * (x.dim() - 2))
    return (F.silu(wide) if silu else wide).to(x.dtype)


@operator("pixel_norm")
def _fused(x: Tensor, weight: Tensor, silu: bool) -> Tensor:
    if not x.is_cuda:
        return plain(x, weight, silu=silu).contiguous()
    from pab.kernels.gpu import pixel_norm as gpu

    return gpu.launch(x, weight, silu=silu, smallest=SMALLEST_NORM)


@shapes_of(_fused)
def _(x: Tensor, weight: Tensor, silu: bool) -> Tensor:
    return torch.empty_like(x)


def fused(x: Tensor, weight: Tensor, *, silu: bool) -> Tensor:
    """Does what `plain` does, on a GPU in one Triton kernel that leaves channels last in memory. No gradients."""
    return _fused(x, weight, silu)
