"""Query and key norm of every head out of a fused QKV, before torch's own attention.

Shape letters: N sequences, L tokens, H heads, C channels of a head, E = 3 H C.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pab.kernels.operator import operator, shapes_of

EPS = 1e-6


def plain(qkv_NLE: Tensor, num_heads: int, norm: tuple[Tensor, Tensor], eps: float = EPS) -> tuple[Tensor, Tensor]:
    """Returns normalised queries and keys, each [N, L, H, C], computed in float32. `norm`: weights [C] of both."""
    wide = qkv_NLE.unflatten(-1, (3, num_heads, -1))[:, :, :2].float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    q, k = (wide * torch.stack(norm)[:, None].float()).to(qkv_NLE.dtype).unbind(2)
    return q, k


@operator("head_norm")
def _fused(qkv_NLE: Tensor, num_heads: int, q_weight: Tensor, k_weight: Tensor, eps: float) -> Tensor:
    from pab.kernels.gpu import head_norm as gpu

    return gpu.launch(qkv_NLE, num_heads, (q_weight, k_weight), eps)


@shapes_of(_fused)
def _(qkv_NLE: Tensor, num_heads: int, q_weight: Tensor, k_weight: Tensor, eps: float) -> Tensor:
    return qkv_NLE.new_empty(2, *qkv_NLE.shape[:2], num_heads, qkv_NLE.shape[2] // 3 // num_heads)


def fused(qkv_NLE: Tensor, num_heads: int, norm: tuple[Tensor, Tensor], eps: float = EPS) -> tuple[Tensor, Tensor]:
    """Does what `plain` does in one Triton kernel; no gradients."""
    q, k = _fused(qkv_NLE, num_heads, *norm, eps).unbind(0)
    return q, k
