"""The first product of an MLP of 8-bit floats with GELU and rounding inside.

A product knows no row's largest value before it is done. So GELU's rows get a scale from above: no channel is larger than
the norm of its row times the largest norm of the weight's rows (the Cauchy-Schwarz inequality). 8-bit floats have 18
binades, and a scale that is too large by some of them costs the smallest values alone. Shape letters: K channels in, N
channels out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pab.kernels import float8
from pab.kernels.float8 import FLOAT8, LARGEST, Float8Linear, Rows8
from pab.kernels.operator import operator, shapes_of


def bounds(norms: Tensor, reach: Tensor) -> Tensor:
    """Returns float32 scales [..., 1] with which no channel of the product of rows of these norms is beyond 448.

    `reach` [2]: of the layer (`Float8Linear.reach`). The magnitude of tanh-GELU is never above that of its input.
    """
    return norms * reach[0] + reach[1]


def plain_gelu(rows: Rows8, weight: Rows8, bias: Tensor, reach: Tensor) -> Rows8:
    """Returns tanh-GELU of rows @ weight.T + bias as 8-bit rows with the scales of `bounds`."""
    wide = F.gelu(float8.plain_linear(rows, weight, bias, torch.float32), approximate="tanh")
    assert rows.norms is not None, "tokens have norms"
    scales = bounds(rows.norms, reach)
    return Rows8((wide / scales).clamp(-LARGEST, LARGEST).to(FLOAT8), scales)


@operator("gelu_product8")
def _gelu(
    values: Tensor, scales: Tensor, norms: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor, reach: Tensor
) -> tuple[Tensor, Tensor]:
    if not values.is_cuda:
        return plain_gelu(Rows8(values, scales, norms), Rows8(weight, weight_scales), bias, reach)[:2]
    from pab.kernels.gpu import product8 as gpu

    return gpu.gelu(Rows8(values, scales, norms), Rows8(weight, weight_scales), bias, reach)


@shapes_of(_gelu)
def _(
    values: Tensor, scales: Tensor, norms: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor, reach: Tensor
) -> tuple[Tensor, Tensor]:
    return values.new_empty(*values.shape[:-1], weight.shape[0]), scales.new_empty(scales.shape)


def gelu_rows(linear: Float8Linear, x: Tensor | Rows8) -> Rows8:
    """Returns tanh-GELU of a layer's product as 8-bit rows, on a GPU in one Triton kernel."""
    given = x if isinstance(x, Rows8) else float8.rows(x)
    assert linear.bias is not None, "a layer before GELU has a bias"
    values, scales, norms = given
    assert norms is not None, "tokens have norms"
    return Rows8(*_gelu(values, scales, norms, linear.weight, linear.weight_scales, linear.bias, linear.reach))
