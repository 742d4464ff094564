"""The residual sums before a modulated layer norm, and the norm, in one pass over the tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from pab.kernels.operator import operator, shapes_of

EPS = 1e-6
MAX_ADDENDS = 2


def plain(
    x_BTSD: Tensor, addends: Sequence[Tensor], shift: Tensor, scale: Tensor, ahead: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns x plus the addends, one after the other, and its layer norm times (1 + scale) plus shift.

    `shift`, `scale`: [B, T or 1, 1, D] of x, or ones for B. `ahead` [D]: added to the sum that is returned, not to what is
    normalised. With it the sum is a new tensor, which the caller may write to.
    """
    for addend in addends:
        x_BTSD = x_BTSD + addend
    normed = F.layer_norm(x_BTSD, x_BTSD.shape[-1:], eps=EPS) * (1 + scale) + shift
    return (x_BTSD if ahead is None else (x_BTSD + ahead).contiguous()), normed


@operator("modulated_norm")
def _fused(x_BTSD: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    from pab.kernels.gpu import modulated_norm as gpu

    return gpu.launch(x_BTSD, (), shift, scale, eps=EPS)[1]


@shapes_of(_fused)
def _(x_BTSD: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x_BTSD.new_empty(x_BTSD.shape)


@operator("add_modulated_norm")
def _fused_sum(
    x_BTSD: Tensor, addends: Sequence[Tensor], shift: Tensor, scale: Tensor, ahead: Tensor | None
) -> tuple[Tensor, Tensor]:
    from pab.kernels.gpu import modulated_norm as gpu

    return gpu.launch(x_BTSD, addends, shift, scale, ahead, eps=EPS)


@shapes_of(_fused_sum)
def _(
    x_BTSD: Tensor, addends: Sequence[Tensor], shift: Tensor, scale: Tensor, ahead: Tensor | None
) -> tuple[Tensor, Tensor]:
    return x_BTSD.new_empty(x_BTSD.shape), x_BTSD.new_empty(x_BTSD.shape)


def fused(
    x_BTSD: Tensor, addends: Sequence[Tensor], shift: Tensor, scale: Tensor, ahead: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Does what `plain` does in one Triton kernel, for at most `MAX_ADDENDS` addends; no gradients."""
    assert len(addends) <= MAX_ADDENDS, f"{len(addends)} addends"
    if not addends and ahead is None:
        return x_BTSD, _fused(x_BTSD, shift, scale)
    return _fused_sum(x_BTSD, list(addends), shift, scale, ahead)
