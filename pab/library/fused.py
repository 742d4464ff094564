"""Fused and 8-bit operations in blocks of the diffusers library, where they are faster (docs/performance.md)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from pab.kernels import flash3, flash3_float8, float8, linear_gelu, product8, rotated_norm
from pab.kernels.choice import fastest
from pab.library.broadcast_module import BroadcastModule, CurrentPass, SiteBlock
from pab.nn.layers import rotate_pairs
from pab.parallel.ulysses import Attend, torch_attention

_SELF, _MLP = ("to_q", "to_k", "to_v", "to_out.0"), ("net.0.proj", "net.2")
TOKEN_PRODUCTS = (
    *(f"{attention}.{name}" for attention in ("attn", "attn1") for name in _SELF),
    *(f"attn2.{name}" for name in ("to_q", "to_out.0")),
    *(f"{mlp}.{name}" for mlp in ("ff", "ffn") for name in _MLP),
    *("proj_mlp", "proj_out"),
)
"""Linear layers over a video's tokens, by the names that the library's blocks give them; a block has some of them.

Products over text alone and of timesteps are small, and stay as they are.
"""


class LinearGelu(nn.Module):
    """Stands in for the library's linear layer with tanh-GELU: the GELU is in the matrix product's epilogue."""

    def __init__(self, proj: nn.Linear) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, x: Tensor) -> Tensor:
        """Returns tanh-GELU of the product."""
        return linear_gelu.fused(x, self.proj.weight, self.proj.bias)


class GeluRows(nn.Module):
    """Stands in for the library's linear layer with tanh-GELU whose product is of 8-bit floats, as is what follows.

    `fused`: GELU and rounding are in the product.
    """

    def __init__(self, proj: float8.Float8Linear, *, fused: bool) -> None:
        super().__init__()
        self.proj = proj
        self.fused = fused and proj.bias is not None

    def forward(self, x: Tensor) -> float8.Rows8:
        """Returns tanh-GELU of the product as 8-bit rows."""
        return product8.gelu_rows(self.proj, x) if self.fused else float8.gelu_rows(self.proj(x))


def _sites(stacks: Sequence[nn.ModuleList]) -> Iterator[BroadcastModule]:
    for stack in stacks:
        yield from [module for module in stack.modules() if isinstance(module, BroadcastModule)]


def fuse(stacks: Sequence[nn.ModuleList], current: CurrentPass) -> None:
    """Has the blocks use what is faster on their device in their precision. What a GPU cannot use is logged once."""
    for site in _sites(stacks):
        _fuse_gelu(site.module)
        attention: Any = site.module
        if hasattr(attention, "to_q"):
            weight, head_dim = attention.to_q.weight, attention.to_q.out_features // attention.heads
            # Chosen while the model loads, for passes without gradients: with them nothing is fused.
            with torch.no_grad():
                chosen = fastest(device=weight.device, dtype=weight.dtype, head_dim=head_dim, num_frames=1)
            current.kernels = replace(current.kernels, flash3=chosen.flash3, norm=chosen.norm, gelu8=chosen.gelu8)


def _fuse_gelu(module: Any) -> None:
    for layers in [part for part in module.modules() if isinstance(part, nn.ModuleList)]:
        for index, layer in enumerate(layers):
            proj = getattr(layer, "proj", None)
            if getattr(layer, "approximate", None) == "tanh" and isinstance(proj, nn.Linear):
                layers[index] = LinearGelu(proj)


def use_float8_products(stacks: Sequence[nn.ModuleList], current: CurrentPass) -> None:
    """Has the blocks multiply by 8-bit floats, in all `TOKEN_PRODUCTS` that they have.

    The GELU between two of them writes its rows as 8-bit floats. Weights in full precision are freed.
    """
    blocks = [cast(SiteBlock, block).block for stack in stacks for block in stack]
    for block in blocks:
        found = [_find(block, name) for name in TOKEN_PRODUCTS]
        linears = [(parent, last) for parent, last in found if isinstance(getattr(parent, last, None), nn.Linear)]
        assert linears, f"{type(block).__name__} has none of the known products"
        for parent, last in linears:
            assert parent is not None, "it has the layer"
            # A list of layers knows them by such names too.
            setattr(parent, last, float8.Float8Linear(getattr(parent, last)))
    for site in _sites(stacks):
        for layers in [part for part in site.module.modules() if isinstance(part, nn.ModuleList)]:
            _round_gelu(layers, fused=current.kernels.gelu8)


def _round_gelu(layers: nn.ModuleList, *, fused: bool) -> None:
    for index, layer in enumerate(layers):
        proj = getattr(layer, "proj", None)
        is_tanh = isinstance(layer, LinearGelu) or getattr(layer, "approximate", None) == "tanh"
        if isinstance(proj, float8.Float8Linear) and is_tanh:
            layers[index] = GeluRows(proj, fused=fused)
            # Dropout takes tensors alone, and does nothing when a model renders.
            for later, other in enumerate(layers):
                if isinstance(other, nn.Dropout):
                    layers[later] = nn.Identity()


def _find(block: nn.Module, name: str) -> tuple[nn.Module | None, str]:
    """Returns what holds the layer of a name, through the wrappers of sites; None where a block has no such part."""
    *path, last = name.split(".")
    found: nn.Module | None = block
    for part in path:
        found = getattr(found, part, None)
        if isinstance(found, BroadcastModule):
            found = found.module
    return found, last


def use_float8_attention(stacks: Sequence[nn.ModuleList], current: CurrentPass) -> None:
    """Has the attention that exchanges tokens take 8-bit floats. Its norms say how large queries and keys may become."""
    for site in _sites(stacks):
        for part in "qk":
            norms = [getattr(site.module, name, None) for name in (f"norm_{part}", f"norm_added_{part}")]
            bounds = [rotated_norm.norm_bound(norm.weight.detach()) for norm in norms if norm is not None]
            if bounds:
                # Of both streams, which attend together.
                cast(nn.Module, norms[0]).register_buffer("bound", torch.stack(bounds).amax(), persistent=False)
    current.kernels = replace(current.kernels, float8=True)


def shared_rows(layer: nn.Module, x: Tensor) -> Any:
    """Returns tokens as `layer` and its like want them: rounded once for all of them where products are of 8-bit floats."""
    return float8.rows(x) if isinstance(layer, float8.Float8Linear) else x


def normed_and_rotated(
    attn: Any, norm: Any, x_BPD: Tensor, rotation: tuple[Tensor, Tensor], current: CurrentPass
) -> Tensor:
    """Returns queries or keys [B, P, H, C], normed over all heads and rotated.

    As 8-bit floats where attention is the next to read them; ranks exchange them as they are.
    """
    kernels = current.kernels
    if kernels.norm and isinstance(norm, nn.RMSNorm):
        bound = norm.bound if kernels.float8 and current.sp.size == 1 else None
        rotation = rotation[0].float(), rotation[1].float()
        assert norm.eps is not None, "the library's models state it"
        return rotated_norm.fused(
            x_BPD, norm.weight, rotation, heads=attn.heads, eps=norm.eps, bound=cast(Tensor | None, bound)
        )
    x = norm(x_BPD).unflatten(2, (attn.heads, -1))
    cosines, sines = (part if part.dim() == 4 else part.unflatten(2, (attn.heads, -1)) for part in rotation)
    return rotate_pairs(x, (cosines, sines))


def attend_of(attn: Any, current: CurrentPass, *, used_keys: Tensor | None = None) -> Attend:
    """Returns what does an attention. `used_keys` int32 [B]: how many of the first keys count, None for all."""
    if current.kernels.float8:
        return partial(_attend_float8, bounds=(attn.norm_q.bound, attn.norm_k.bound), used_keys=used_keys)
    return partial(_attend_flash3, used_keys=used_keys) if current.kernels.flash3 else torch_attention


def _attend_flash3(
    q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, mask: Tensor | None, *, used_keys: Tensor | None
) -> Tensor:
    assert mask is None or used_keys is not None, "a mask says what `used_keys` says"
    return flash3.fused(q_BSHD, k_BSHD, v_BSHD, used_keys)


def _attend_float8(
    q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, mask: Tensor | None, *, bounds: tuple[Tensor, Tensor],
    used_keys: Tensor | None,
) -> Tensor:  # fmt: skip
    assert mask is None or used_keys is not None, "a mask says what `used_keys` says"
    q8, k8 = (
        x if x.dtype == rotated_norm.FLOAT8 else rotated_norm.to_float8(x, bound)
        for x, bound in zip((q_BSHD, k_BSHD), bounds, strict=True)
    )
    return flash3_float8.fused(q8, k8, v_BSHD, bounds, used_keys=used_keys)
