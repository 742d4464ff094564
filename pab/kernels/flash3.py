"""Self attention by FlashAttention-3 (arXiv 2407.08608) on Hopper GPUs, from the package fa3-fwd.

Shape letters: N sequences, L tokens, H heads, C channels of a head.
"""

from __future__ import annotations

import functools
import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor

HOPPER = (9, 0)


def runs_on(device: torch.device) -> bool:
    """Whether a device is a Hopper GPU."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability(device) == HOPPER


@functools.cache
def installed() -> bool:
    """Whether the package is there; nothing is loaded."""
    return importlib.util.find_spec("fa3_fwd") is not None


def plain(q_NLHC: Tensor, k_NLHC: Tensor, v_NLHC: Tensor) -> Tensor:
    """Returns [N, L, H, C] by torch's own attention."""
    q, k, v = (x.transpose(1, 2) for x in (q_NLHC, k_NLHC, v_NLHC))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


@torch.library.custom_op("pab::flash3", mutates_args=())
def _fused(q_NLHC: Tensor, k_NLHC: Tensor, v_NLHC: Tensor) -> Tensor:
    if not q_NLHC.is_cuda:
        return plain(q_NLHC, k_NLHC, v_NLHC).contiguous()
    importlib.import_module("fa3_fwd._C")  # registers the operator at its first call
    settings = (None, False, -1, -1, 0, 0.0, True, None, 1, None, 0)  # scale, causal, window, ..., one split
    out: Tensor = torch.ops.fa3_fwd.fwd(q_NLHC, k_NLHC, v_NLHC, *(None,) * 20, *settings)[0]
    return out


@_fused.register_fake
def _(q_NLHC: Tensor, k_NLHC: Tensor, v_NLHC: Tensor) -> Tensor:
    return q_NLHC.new_empty(q_NLHC.shape)


def fused(q_NLHC: Tensor, k_NLHC: Tensor, v_NLHC: Tensor) -> Tensor:
    """Does what `plain` does; tensors may be views whose last dim is dense. No gradients."""
    return _fused(q_NLHC, k_NLHC, v_NLHC)
