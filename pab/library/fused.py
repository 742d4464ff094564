"""Fused operations in blocks of the diffusers library, where they were measured to be faster (docs/performance.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pab.kernels import flash3, linear_gelu
from pab.kernels.choice import fastest
from pab.library.broadcast_module import BroadcastModule, CurrentPass
from pab.parallel.ulysses import torch_attention


class LinearGelu(nn.Module):
    """Stands in for the library's linear layer with tanh-GELU: the GELU is in the matrix product's epilogue."""

    def __init__(self, proj: nn.Linear) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, x: Tensor) -> Tensor:
        """Returns tanh-GELU of the product."""
        return linear_gelu.fused(x, self.proj.weight, self.proj.bias)


def fuse(stacks: Sequence[nn.ModuleList], current: CurrentPass) -> None:
    """Has the blocks use what is faster on their device in their precision. What a GPU cannot use is logged once."""
    for stack in stacks:
        for site in [module for module in stack.modules() if isinstance(module, BroadcastModule)]:
            _fuse_gelu(site.module)
            attention: Any = site.module
            if hasattr(attention, "to_q"):
                q, head_dim = attention.to_q, attention.to_q.out_features // attention.heads
                # Chosen while the model loads, for passes without gradients: with them nothing is fused.
                with torch.no_grad():
                    chosen = fastest(device=q.weight.device, dtype=q.weight.dtype, head_dim=head_dim, num_frames=1)
                current.flash3 = chosen.flash3


def _fuse_gelu(module: Any) -> None:
    for layers in [part for part in module.modules() if isinstance(part, nn.ModuleList)]:
        for index, layer in enumerate(layers):
            proj = getattr(layer, "proj", None)
            if getattr(layer, "approximate", None) == "tanh" and isinstance(proj, nn.Linear):
                layers[index] = LinearGelu(proj)


def attend_fused(q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, mask: Tensor | None) -> Tensor:
    """Does what `torch_attention` does, without a mask by FlashAttention-3."""
    if mask is not None:
        return torch_attention(q_BSHD, k_BSHD, v_BSHD, mask)
    return flash3.fused(q_BSHD, k_BSHD, v_BSHD)
