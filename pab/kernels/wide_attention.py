"""Attention of one head that is wider than fast attention kernels take: two products, and a softmax between them in one pass.

Shape letters: N pictures, S places, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_KEYS = 32768
"""A program of the softmax has a whole row."""


def plain(q_NSD: Tensor, k_NSD: Tensor, v_NSD: Tensor) -> Tensor:
    """Returns what each place attends to [N, S, D]: torch's own."""
    return F.scaled_dot_product_attention(q_NSD[:, None], k_NSD[:, None], v_NSD[:, None])[:, 0]


def fused(q_NSD: Tensor, k_NSD: Tensor, v_NSD: Tensor) -> Tensor:
    """Does what `plain` does. On a GPU in 16 bits by products whose scores are float32; it holds those of all pictures."""
    if not q_NSD.is_cuda or q_NSD.dtype == torch.float32 or k_NSD.shape[1] > MOST_KEYS:
        return plain(q_NSD, k_NSD, v_NSD)
    from pab.kernels.gpu import softmax as gpu

    scores = torch.bmm(q_NSD, k_NSD.transpose(1, 2), out_dtype=torch.float32)
    return torch.bmm(gpu.launch(scores, q_NSD.shape[-1] ** -0.5, q_NSD.dtype), v_NSD)
