"""The product of 8-bit rows that goes on with its result where it lies: GELU and rounding to 8 bits.

Programs stay on the device and take one tile of the output after the other, so that loads for the next tile run beside the
end of this one. Tensors come and go by the hardware's copies of whole tiles, which also cut at the borders.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from pab.kernels.float8 import Rows8


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """How the work is cut: tokens, channels out and channels in of a step, rows of tiles that are taken together.

    `per_processor`: programs of a processor. One that ends its tile leaves the matrix units to another one.
    """

    tokens: int = 128
    outputs: int = 128
    inputs: int = 128
    group: int = 8
    per_processor: int = 2
    num_warps: int = 4
    num_stages: int = 3


GELU_TILE = Tile(outputs=256, per_processor=1, num_warps=8, num_stages=4)


@triton.jit
def _place(tile, rows, columns, GROUP: tl.constexpr):
    """Returns the row and column of a tile: `GROUP` rows of tiles are taken together, so that what they share is near."""
    group = tile // (GROUP * columns)
    first = group * GROUP
    height = tl.minimum(rows - first, GROUP)
    within = tile % (GROUP * columns)
    return first + within % height, within // height


@triton.jit
def _gelu(x, times, APPROXIMATE: tl.constexpr):
    """Returns tanh-GELU times `times`. APPROXIMATE: by the tangent of the hardware, which is right to 11 bits."""
    angle = x * (0.7978845608 + 0.0356774081 * x * x)
    if APPROXIMATE:
        tangent = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [angle], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        tangent = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * angle))
    half = 0.5 * x * times
    return half + half * tangent


@triton.jit
def _kernel(a, b, out, scales, norms, weight_scales, bias, reach, out_scales, num_tokens, num_outputs, num_inputs,
            TOKENS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, GROUP: tl.constexpr,
            APPROXIMATE: tl.constexpr):  # fmt: skip
    rows = tl.cdiv(num_tokens, TOKENS)
    columns = tl.cdiv(num_outputs, OUTPUTS)
    steps = tl.cdiv(num_inputs, INPUTS)
    # The place is found again behind the product, so that the next product may begin before this one's end.
    behind = tl.program_id(0) - tl.num_programs(0)
    for tile in tl.range(tl.program_id(0), rows * columns, tl.num_programs(0), flatten=True):
        row, column = _place(tile, rows, columns, GROUP)
        acc = tl.zeros((TOKENS, OUTPUTS), tl.float32)
        for step in range(steps):
            x = a.load([row * TOKENS, step * INPUTS])
            w = b.load([column * OUTPUTS, step * INPUTS])
            acc = tl.dot(x, w.T, acc)
        behind += tl.num_programs(0)
        row, column = _place(behind, rows, columns, GROUP)
        token = row * TOKENS + tl.arange(0, TOKENS)
        channel = column * OUTPUTS + tl.arange(0, OUTPUTS)
        seen = token < num_tokens
        scale = tl.load(scales + token, mask=seen, other=1.0)
        weight_scale = tl.load(weight_scales + channel, mask=channel < num_outputs, other=0.0)
        offset = tl.load(bias + channel, mask=channel < num_outputs, other=0.0).to(tl.float32)
        acc = acc * scale[:, None] * weight_scale[None, :] + offset[None, :]
        out_scale = tl.load(norms + token, mask=seen, other=1.0) * tl.load(reach) + tl.load(reach + 1)
        tl.store(out_scales + token, out_scale, mask=token < tl.where(column == 0, num_tokens, 0))
        acc = _gelu(acc, (1.0 / out_scale)[:, None], APPROXIMATE)
        out.store([row * TOKENS, column * OUTPUTS], acc.to(out.dtype))


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


def gelu(rows: Rows8, weight: Rows8, bias: Tensor, reach: Tensor, tile: Tile = GELU_TILE) -> tuple[Tensor, Tensor]:
    """Returns tanh-GELU of the product as values [..., N] of the dtype of the rows' values, and float32 scales [..., 1]."""
    values, scales, norms = rows
    inputs, outputs = values.shape[-1], weight.values.shape[0]
    out, out_scales = values.new_empty(*values.shape[:-1], outputs), torch.empty_like(scales)
    tokens = values.reshape(-1, inputs)
    num_tiles = triton.cdiv(len(tokens), tile.tokens) * triton.cdiv(outputs, tile.outputs)
    _kernel[(min(num_tiles, tile.per_processor * _processors(values.device)),)](
        TensorDescriptor.from_tensor(tokens, [tile.tokens, tile.inputs]),
        TensorDescriptor.from_tensor(weight.values, [tile.outputs, tile.inputs]),
        TensorDescriptor.from_tensor(out.view(-1, outputs), [tile.tokens, tile.outputs]),
        scales, norms, weight.scales, bias, reach, out_scales, len(tokens), outputs, inputs, TOKENS=tile.tokens,
        OUTPUTS=tile.outputs, INPUTS=tile.inputs, GROUP=tile.group, APPROXIMATE=values.is_cuda,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return out, out_scales
