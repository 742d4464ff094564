"""Self attention of 8-bit floats by FlashAttention-3 on Hopper GPUs, from the package fa3-fwd.

Queries and keys come as 8-bit floats of a known bound (`rotated_norm`), values are scaled by the largest of their head.
Scores and sums are float32, probabilities 8-bit floats. Shape letters: N sequences, L tokens, H heads, C channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pab.kernels import flash3
from pab.kernels.float8 import Float8Error
from pab.kernels.operator import operator, shapes_of
from pab.kernels.rotated_norm import FLOAT8, LARGEST

Scales = tuple[Tensor, Tensor, Tensor]
"""Of queries, keys and values, each float32 [N, H]."""


def plain(q8: Tensor, k8: Tensor, v8: Tensor, scales: Scales, used_keys: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Returns [N, L, H, C] in `dtype`: torch's own attention of the rounded tokens."""
    q, k, v = (x.float() * scale[:, None, :, None] for x, scale in zip((q8, k8, v8), scales, strict=True))
    return flash3.plain(q, k, v, used_keys).to(dtype)


@operator("flash3_float8")
def _fused(
    q8: Tensor, k8: Tensor, v8: Tensor, q_scale: Tensor, k_scale: Tensor, v_scale: Tensor,
    used_keys: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    scales = (q_scale, k_scale, v_scale)
    if not q8.is_cuda:
        return plain(q8, k8, v8, scales, used_keys, dtype).contiguous()
    return flash3.call(q8, k8, v8, used_keys, scales)


@shapes_of(_fused)
def _(
    q8: Tensor, k8: Tensor, v8: Tensor, q_scale: Tensor, k_scale: Tensor, v_scale: Tensor,
    used_keys: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return q8.new_empty(q8.shape, dtype=dtype)


def scaled_by_head(x_NLHC: Tensor) -> tuple[Tensor, Tensor]:
    """Returns x as 8-bit floats, and the scale [N, H] of every head, whose largest magnitude is 448 of it."""
    scales = (x_NLHC.abs().amax((1, 3)).float() / LARGEST).clamp(min=1e-12)
    return (x_NLHC.float() / scales[:, None, :, None]).clamp(-LARGEST, LARGEST).to(FLOAT8), scales


def fused(
    q8: Tensor, k8: Tensor, v_NLHC: Tensor, bounds: tuple[Tensor, Tensor], *, used_keys: Tensor | None = None
) -> Tensor:
    """Returns [N, L, H, C] in the dtype of the values. `bounds`: what 448 stands for in queries and keys. No gradients.

    `used_keys` int32 [N]: how many keys of each sequence count, None for all.
    """
    q_scale, k_scale = ((bound / LARGEST).expand(q8.shape[0], q8.shape[2]).contiguous() for bound in bounds)
    v8, v_scale = scaled_by_head(v_NLHC)
    return _fused(q8, k8, v8, q_scale, k_scale, v_scale, used_keys, v_NLHC.dtype)


def check_gpu(name: str, capability: tuple[int, int], *, installed: bool) -> None:
    """Raises Float8Error for a GPU that has no such attention, or whose node has not `installed` its package."""
    if capability != flash3.HOPPER:
        found, needed = (".".join(map(str, each)) for each in (capability, flash3.HOPPER))
        raise Float8Error(
            f"attention=float8: {name} has compute capability {found}, needs {needed} (Hopper); take other nodes or "
            "--attention auto"
        )
    if not installed:
        raise Float8Error(
            "attention=float8: fa3-fwd is not installed on this node; pip install 'pab-pipeline[hopper]', or "
            "--attention auto"
        )
