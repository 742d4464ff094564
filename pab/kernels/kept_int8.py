"""Tokens kept as 8-bit integers with a scale per token: half of what they take in bfloat16."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = 127
SMALLEST_SCALE = 1e-30


@dataclass(frozen=True, slots=True)
class Packed:
    """Tokens [..., D] as int8 `values` and float32 `scales` [..., 1]; `dtype` is what they were."""

    values: Tensor
    scales: Tensor
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """The memory it holds."""
        return int(self.values.nbytes + self.scales.nbytes)


def plain_pack(x: Tensor) -> Packed:
    """Rounds every value to the nearest of 255 steps between the largest magnitude of its token and its negative.

    A value is off by at most half a step, 1/254 of that magnitude. Tokens with NaN or infinity come back as NaN.
    """
    wide = x.float()
    scales = (wide.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=SMALLEST_SCALE)
    values = (wide / scales).nan_to_num(0.0).round().clamp(-LARGEST, LARGEST).to(torch.int8)
    return Packed(values, torch.where(scales.isfinite(), scales, torch.nan), x.dtype)


def plain_unpack(packed: Packed) -> Tensor:
    """Returns the tokens."""
    return (packed.values.float() * packed.scales).to(packed.dtype)


def fused_pack(x: Tensor) -> Packed:
    """Does what `plain_pack` does in one Triton kernel; a quotient near the middle of two steps may go either way."""
    from pab.kernels.gpu import kept_int8 as gpu

    values, scales = gpu.pack(x)
    return Packed(values, scales, x.dtype)


def fused_unpack(packed: Packed) -> Tensor:
    """Does what `plain_unpack` does in one Triton kernel."""
    from pab.kernels.gpu import kept_int8 as gpu

    return gpu.unpack(packed.values, packed.scales, packed.dtype)


def pack(x: Tensor) -> Packed:
    """Packs tokens, on a GPU in one kernel."""
    return fused_pack(x) if x.is_cuda and _has_triton() else plain_pack(x)


def unpack(packed: Packed) -> Tensor:
    """Undoes `pack` as far as it can be undone."""
    return fused_unpack(packed) if packed.values.is_cuda and _has_triton() else plain_unpack(packed)


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
