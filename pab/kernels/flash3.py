"""Self attention by FlashAttention-3 (arXiv 2407.08608) on Hopper GPUs, from the package fa3-fwd.

Shape letters: N sequences, L tokens, H heads, C channels of a head.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pab.kernels.operator import operator, shapes_of

HOPPER = (9, 0)


def runs_on(device: torch.device) -> bool:
    """Whether a device is a Hopper GPU."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability(device) == HOPPER


@functools.cache
def installed() -> bool:
    """Whether the package is there; nothing is loaded."""
    return importlib.util.find_spec("fa3_fwd") is not None


def plain(q_NLHC: Tensor, k_NLHC: Tensor, v_NLHC: Tensor, used_keys: Tensor | None = None) -> Tensor:
    """Returns [N, L, H, C] by torch's own attention. `used_keys` int32 [N]: how many of the first keys count; None: all."""
    q, k, v = (x.transpose(1, 2) for x in (q_NLHC, k_NLHC, v_NLHC))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask(used_keys, k.shape[2])).transpose(1, 2)


def key_mask(used_keys: Tensor | None, num_keys: int) -> Tensor | None:
    """Returns [N, 1, 1, num_keys], True for the keys that count; None where all do."""
    if used_keys is None:
        return None
    return (torch.arange(num_keys, device=used_keys.device) < used_keys[:, None])[:, None, None]


def call(q_NLHC: Tensor, k_NLHC: Tensor, v_NLHC: Tensor, used_keys: Tensor | None, scales: Sequence[Tensor]) -> Tensor:
    """Calls the package's operator. `scales`: of 8-bit queries, keys and values, each float32 [N, H]; else none."""
    importlib.import_module("fa3_fwd._C")  # registers the operator at its first call
    of_values = scales or (None,) * 3
    settings = (None, False, -1, -1, 0, 0.0, True, None, 1, None, 0)  # scale, causal, window, ..., one split
    absent = (None,) * 8
    out: Tensor = torch.ops.fa3_fwd.fwd(
        q_NLHC, k_NLHC, v_NLHC, *absent, used_keys, *absent, *of_values, *settings
    )[0]  # fmt: skip
    return out


@operator("flash3")
def _fused(q_NLHC: Tensor, k_NLHC: Tensor, v_NLHC: Tensor, used_keys: Tensor | None) -> Tensor:
    if not q_NLHC.is_cuda:
        return plain(q_NLHC, k_NLHC, v_NLHC, used_keys).contiguous()
    return call(q_NLHC, k_NLHC, v_NLHC, used_keys, ())


@shapes_of(_fused)
def _(q_NLHC: Tensor, k_NLHC: Tensor, v_NLHC: Tensor, used_keys: Tensor | None) -> Tensor:
    return q_NLHC.new_empty(q_NLHC.shape)


def fused(q_NLHC: Tensor, k_NLHC: Tensor, v_NLHC: Tensor, used_keys: Tensor | None = None) -> Tensor:
    """Does what `plain` does; tensors may be views whose last dim is dense. No gradients."""
    return _fused(q_NLHC, k_NLHC, v_NLHC, used_keys)
