"""Attention of video tokens to text tokens, for head sizes that are no power of two.

Shape letters: N sequences, Q queries, L keys, H heads, C channels of a head, D = H C.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pab.kernels.operator import operator, shapes_of


def plain_cross(q_NQD: Tensor, keys_values: Tensor, mask_N11L: Tensor | None) -> Tensor:
    """Returns [N, Q, D]. `keys_values`: [N, 2, H, L, C]; `mask_N11L`: True for keys that count."""
    heads = keys_values.shape[2]
    q = q_NQD.unflatten(-1, (heads, -1)).transpose(1, 2)
    k, v = keys_values.unbind(1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask_N11L).transpose(1, 2).flatten(2)


@operator("cross_attention")
def _fused_cross(q_NQD: Tensor, keys_values: Tensor, mask_N11L: Tensor | None) -> Tensor:
    from pab.kernels.gpu import attention as gpu

    k, v = keys_values.transpose(2, 3).unbind(1)
    heads = keys_values.shape[2]
    q_NQD = q_NQD.contiguous()
    mask = None
    if mask_N11L is not None:
        counts = mask_N11L.expand(q_NQD.shape[0], -1, -1, -1)[:, 0, 0].contiguous()
        places = torch.arange(1, counts.shape[1] + 1, device=counts.device, dtype=torch.int32)
        mask = (counts.view(torch.uint8), (counts * places).amax(1).to(torch.int32))
    return gpu.launch(q_NQD.unflatten(-1, (heads, -1)), k, v, mask=mask, tile=gpu.FASTEST)


@shapes_of(_fused_cross)
def _(q_NQD: Tensor, keys_values: Tensor, mask_N11L: Tensor | None) -> Tensor:
    return q_NQD.new_empty(q_NQD.shape)


def fused_cross(q_NQD: Tensor, keys_values: Tensor, mask_N11L: Tensor | None) -> Tensor:
    """Does what `plain_cross` does in one Triton kernel that ends at each row's last key that counts; no gradients.

    Every row needs at least one key that counts.
    """
    return _fused_cross(q_NQD, keys_values, mask_N11L)
