"""Matrix products of 8-bit floats: every token and every row of a weight has a scale of its own.

Values are e4m3 (4 bits of exponent, 3 of mantissa), scales float32. The operation before a product (norm, gated sum, GELU)
makes its tokens 8-bit in the same pass in which it writes them. Shape letters: K channels in, N channels out.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from pab.kernels import modulated_norm
from pab.kernels.operator import operator, shapes_of

LARGEST = 448.0
SMALLEST_SCALE = 1e-12
ROUNDED_UP = 1.065
"""How much longer a row gets at most by being rounded: each value by a sixteenth, or by half of the smallest step."""
FLOAT8 = torch.float8_e4m3fn
ADA = (8, 9)
"""The least compute capability whose matrix units take 8-bit floats."""


LEFT_OUT = "a recorded loop would lack its 8-bit products: GPUs of compute capability 8.9 need torch 2.12 for that"


class Float8Error(RuntimeError):
    """8-bit products cannot run on this machine; the message says what it is and what is needed."""


class Rows8(NamedTuple):
    """Rows [..., K] as `values` times `scales` [..., 1].

    `norms` [..., 1]: their Euclidean norms before they were rounded, which bound what a product can make of them. None for
    rows of a weight, and for those that a product has written.
    """

    values: Tensor
    scales: Tensor
    norms: Tensor | None = None


def plain_rows(x: Tensor) -> Rows8:
    """Rounds every row to 8-bit floats whose largest is 448. NaN and infinity come back as NaN."""
    wide = x.float()
    scales = (wide.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=SMALLEST_SCALE)
    norms = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return Rows8((wide / scales).clamp(-LARGEST, LARGEST).to(FLOAT8), scales, norms)


def plain_gelu_rows(x: Tensor) -> Rows8:
    """Returns tanh-GELU of x as 8-bit rows."""
    return plain_rows(F.gelu(x.float(), approximate="tanh"))


def plain_norm_rows(x_BTSD: Tensor, addends: Sequence[Tensor], shift: Tensor, scale: Tensor) -> tuple[Tensor, Rows8]:
    """Does what `modulated_norm.plain` does, with the norm as 8-bit rows."""
    total, normed = modulated_norm.plain(x_BTSD, addends, shift, scale)
    return total, plain_rows(normed)


def plain_gated_sum(x_BTSD: Tensor, branch_BTSD: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor, Rows8]:
    """Returns x + gate * branch, the gated branch, and the sum as 8-bit rows.

    `gate`: [B, T or 1, 1, D], or ones for B; None for a branch that is gated already.
    """
    gated = branch_BTSD if gate is None else gate * branch_BTSD
    total = x_BTSD + gated
    return total, gated, plain_rows(total)


def plain_linear(rows: Rows8, weight: Rows8, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Returns rows @ weight.T + bias, added up in float32. `weight`: [N, K] with scales [N, 1]."""
    out = F.linear(rows.values.float(), weight.values.float()) * rows.scales * weight.scales[:, 0]
    return (out if bias is None else out + bias.float()).to(dtype)


@operator("rows8")
def _rows(x: Tensor, gelu: bool) -> tuple[Tensor, Tensor, Tensor]:
    if not x.is_cuda:
        return _known(plain_gelu_rows(x) if gelu else plain_rows(x))
    from pab.kernels.gpu import float8 as gpu

    return gpu.rows(x, gelu=gelu)


@shapes_of(_rows)
def _(x: Tensor, gelu: bool) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_rows(x)


@operator("norm_rows8")
def _norm_rows(
    x_BTSD: Tensor, addends: Sequence[Tensor], shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if x_BTSD.is_cuda:
        from pab.kernels.gpu import modulated_norm as gpu

        total, *rows = gpu.launch_rows(x_BTSD, addends, shift, scale, eps=modulated_norm.EPS)
    else:
        total, given = plain_norm_rows(x_BTSD, addends, shift, scale)
        rows = [*_known(given)]
    # An operator must not return its own input, as it would without addends: then there is no sum.
    return total if addends else x_BTSD.new_empty(0), rows[0], rows[1], rows[2]


@shapes_of(_norm_rows)
def _(x_BTSD: Tensor, addends: Sequence[Tensor], shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x_BTSD.new_empty(x_BTSD.shape if addends else 0), *_empty_rows(x_BTSD)


@operator("gated_sum_rows8")
def _gated_sum(
    x_BTSD: Tensor, branch_BTSD: Tensor, gate: Tensor | None, keeps: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if x_BTSD.is_cuda:
        from pab.kernels.gpu import float8 as gpu

        return gpu.gated_sum(x_BTSD, branch_BTSD, gate, keeps=keeps)
    total, gated, rows = plain_gated_sum(x_BTSD, branch_BTSD, gate)
    # An operator must not return its own input.
    return total, gated if keeps and gate is not None else gated.new_empty(0), *_known(rows)


@shapes_of(_gated_sum)
def _(
    x_BTSD: Tensor, branch_BTSD: Tensor, gate: Tensor | None, keeps: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gated = x_BTSD.new_empty(x_BTSD.shape if keeps and gate is not None else 0)
    return x_BTSD.new_empty(x_BTSD.shape), gated, *_empty_rows(x_BTSD)


@operator("linear_rows8")
def _linear(
    values: Tensor, scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    if not values.is_cuda:
        return plain_linear(Rows8(values, scales), Rows8(weight, weight_scales), bias, dtype)
    if _leaves_its_stream(values.device) and torch.cuda.is_current_stream_capturing():
        raise Float8Error(LEFT_OUT)
    out = torch._scaled_mm(
        values.flatten(0, -2), weight.t(), scale_a=scales.view(-1, 1), scale_b=weight_scales.t(), bias=bias,
        out_dtype=dtype, use_fast_accum=True,
    )  # fmt: skip
    return out.view(*values.shape[:-1], -1)


@shapes_of(_linear)
def _(
    values: Tensor, scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    return values.new_empty(*values.shape[:-1], weight.shape[0], dtype=dtype)


def _known(rows: Rows8) -> tuple[Tensor, Tensor, Tensor]:
    assert rows.norms is not None, "tokens have norms"
    return rows.values, rows.scales, rows.norms


def _empty_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    values, scales = x.new_empty(x.shape, dtype=FLOAT8), x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
    return values, scales, torch.empty_like(scales)


def rows(x: Tensor) -> Rows8:
    """Does what `plain_rows` does, on a GPU in one Triton kernel."""
    return Rows8(*_rows(x.contiguous(), False))


def gelu_rows(x: Tensor) -> Rows8:
    """Does what `plain_gelu_rows` does, on a GPU in one Triton kernel."""
    return Rows8(*_rows(x.contiguous(), True))


def norm_rows(x_BTSD: Tensor, addends: Sequence[Tensor], shift: Tensor, scale: Tensor) -> tuple[Tensor, Rows8]:
    """Does what `plain_norm_rows` does, on a GPU in one Triton kernel."""
    total, *rows = _norm_rows(x_BTSD, list(addends), shift, scale)
    return (total if addends else x_BTSD), Rows8(*rows)


def gated_sum(
    x_BTSD: Tensor, branch_BTSD: Tensor, gate: Tensor | None, *, keeps: bool
) -> tuple[Tensor, Tensor | None, Rows8]:
    """Does what `plain_gated_sum` does, on a GPU in one Triton kernel; the gated branch only where it `keeps` it."""
    total, gated, *rows = _gated_sum(x_BTSD, branch_BTSD, gate, keeps)
    kept = branch_BTSD if gate is None else gated
    return total, kept if keeps else None, Rows8(*rows)


class Float8Linear(nn.Module):
    """A linear layer whose product is of 8-bit floats; takes tokens, or rows that are 8-bit already."""

    weight: Tensor
    weight_scales: Tensor
    reach: Tensor
    """Float32 [2]: how large a channel gets at most, over 448: without bias for a token of norm 1, and by its bias."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scales, _ = plain_rows(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scales", scales)
        norms = torch.linalg.vector_norm(weight.float(), dim=-1, keepdim=True) * scales
        offset = norms.new_zeros(()) if linear.bias is None else linear.bias.detach().float().abs().amax()
        reach = torch.stack([ROUNDED_UP * norms.amax(), offset]) / LARGEST + SMALLEST_SCALE
        self.register_buffer("reach", reach, persistent=False)
        self.bias = linear.bias
        self.dtype = linear.weight.dtype

    def forward(self, x: Tensor | Rows8) -> Tensor:
        """Maps the last dim from K to N channels."""
        given = x if isinstance(x, Rows8) else rows(x)
        return _linear(given.values, given.scales, self.weight, self.weight_scales, self.bias, self.dtype)

    def gated(self, x: Tensor | Rows8, gate: Tensor) -> Tensor:
        """Does the same, times `gate` [N]: its scales and bias carry the gate, which takes no time."""
        given = x if isinstance(x, Rows8) else rows(x)
        scales = self.weight_scales * gate[:, None].float()
        bias = None if self.bias is None else self.bias * gate
        return _linear(given.values, given.scales, self.weight, scales, bias, self.dtype)


@functools.cache
def _leaves_its_stream(device: torch.device) -> bool:
    return leaves_its_stream(torch.cuda.get_device_capability(device), torch.__version__)


def leaves_its_stream(capability: tuple[int, int], torch_version: str) -> bool:
    """Whether torch starts the products on its default stream whatever stream they are called on (pytorch issue 177651).

    A CUDA graph would be recorded without them then, and replay what they gave before.
    """
    return capability == ADA and TorchVersion(torch_version) < "2.12"


def check_gpu(name: str, capability: tuple[int, int]) -> None:
    """Raises Float8Error for a GPU whose matrix units take no 8-bit floats."""
    if capability < ADA:
        found, least = (".".join(map(str, each)) for each in (capability, ADA))
        raise Float8Error(
            f"linears=float8: {name} has compute capability {found}, needs {least} or later; take other nodes or "
            "--linears full"
        )


def use_float8(module: nn.Module, names: Sequence[str]) -> None:
    """Replaces the named linear layers by 8-bit products; their weights in full precision are freed."""
    for name in names:
        path, _, last = name.rpartition(".")
        parent = module.get_submodule(path)
        linear = module.get_submodule(name)
        assert isinstance(linear, nn.Linear), f"{name} is no linear layer"
        if isinstance(parent, nn.ModuleDict | nn.ModuleList):
            parent._modules[last] = Float8Linear(linear)
        else:
            setattr(parent, last, Float8Linear(linear))
