"""Self attention over frames, out of a fused QKV [B, T, S, 3 D]: q and k norm, rotation, softmax, no transposes.

Shape letters: B rows, T frames, S patches of a frame, D channels (heads x head_dim), E = 3 D.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pab.kernels.operator import operator, shapes_of

MAX_FRAMES = 128


def plain(
    qkv_BTSE: Tensor,
    num_heads: int,
    norm: tuple[Tensor, Tensor] | None,
    rotation: tuple[Tensor, Tensor] | None,
    eps: float = 1e-6,
) -> Tensor:
    """Returns [B, T, S, D], computed with float32 norm and rotation and torch's own attention: the kernel's twin."""
    q, k, v = qkv_BTSE.unflatten(-1, (3, num_heads, -1)).permute(3, 0, 2, 4, 1, 5)
    wide = [q.float(), k.float()]
    if norm is not None:
        wide = [_normed(x, weight, eps) for x, weight in zip(wide, norm, strict=True)]
    if rotation is not None:
        wide = [_rotated(x, rotation) for x in wide]
    q, k = (x.to(v.dtype) for x in wide)
    return F.scaled_dot_product_attention(q, k, v).permute(0, 3, 1, 2, 4).flatten(3)


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()


def _rotated(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cosines, sines = (each[:, ::2] for each in rotation)
    return torch.stack([even * cosines - odd * sines, odd * cosines + even * sines], dim=-1).flatten(-2)


@operator("temporal_attention")
def _fused(
    qkv_BTSE: Tensor,
    num_heads: int,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cosines: Tensor | None,
    sines: Tensor | None,
    eps: float,
) -> Tensor:
    from pab.kernels.gpu import temporal_attention as gpu

    norm = None if q_weight is None or k_weight is None else (q_weight, k_weight)
    rotation = None if cosines is None or sines is None else (cosines, sines)
    return gpu.launch(qkv_BTSE, num_heads, norm, rotation, eps)


@shapes_of(_fused)
def _(
    qkv_BTSE: Tensor,
    num_heads: int,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cosines: Tensor | None,
    sines: Tensor | None,
    eps: float,
) -> Tensor:
    return qkv_BTSE.new_empty(*qkv_BTSE.shape[:3], qkv_BTSE.shape[3] // 3)


def fused(
    qkv_BTSE: Tensor,
    num_heads: int,
    norm: tuple[Tensor, Tensor] | None,
    rotation: tuple[Tensor, Tensor] | None,
    eps: float = 1e-6,
) -> Tensor:
    """Does what `plain` does in one Triton kernel, for at most `MAX_FRAMES` frames; no gradients.

    `norm`: weights [head_dim] of query and key norm. `rotation`: cosines and sines [T, head_dim] float32 of channel
    pairs, each value twice.
    """
    q_weight, k_weight = norm or (None, None)
    cosines, sines = rotation or (None, None)
    return _fused(qkv_BTSE, num_heads, q_weight, k_weight, cosines, sines, eps)
