"""The forward pass of blocks whose attention and MLP have a gate each: STDiT3's and Latte's.

What is kept is a branch behind its gate. Sums wait for the next norm, which takes them into its own pass over the tokens.
Where all tokens share their gates, those may be in the weights of the branches' last products, and a branch that nobody
keeps is added to the tokens by its product (`pab.kernels.product_end`).

Shape letters: B guidance rows x clips, T frames (this rank's), S patches of a frame, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from pab.broadcast.state import handed_over
from pab.kernels import float8, modulated_norm
from pab.kernels.choice import Kernels
from pab.kernels.product_end import AS_IT_IS, End, Product, ahead
from pab.parallel.mesh import SequenceParallel

Tokens = Tensor | float8.Rows8
"""[B, T, S, D] in full, or as 8-bit rows."""
Norm = Callable[[Tensor, Sequence[Tensor], Tensor, Tensor], tuple[Tensor, Tokens]]
"""From tokens, what is added to them, shift and scale to their sum and its modulated norm."""


class GatedMlp(Protocol):
    """A block's MLP."""

    @property
    def is_float8(self) -> bool:
        """Whether its products are of 8-bit floats."""

    @property
    def last(self) -> Product:
        """Its last product."""

    def __call__(self, x: Tokens, *, fused: bool = False, end: End = AS_IT_IS) -> Tensor:
        """Returns [B, T, S, D], ended as `end` says. `fused`: GELU in the first matrix product's epilogue."""


class Attention(NamedTuple):
    """A block's self attention: from tokens to [B, T, S, D], ended as told.

    `last`: its last product, if that may be added to the block's tokens: if its own lie as those do.
    """

    run: Callable[[Tokens, End], Tensor]
    last: Product | None


class Asking(NamedTuple):
    """A block's cross attention: from tokens, and what every one of them holds too much, to [B, T, S, D], ended as told.

    `last`: its last product.
    """

    run: Callable[[Tokens, End, Tensor | None], Tensor]
    last: Product


def norm_for(kernels: Kernels, *, is_float8: bool = False) -> Norm:
    """Returns the norm before products in full precision, or of 8-bit floats."""
    if is_float8:
        return float8.norm_rows
    return modulated_norm.fused if kernels.norm else modulated_norm.plain


def run_branches(
    x_BTSD: Tensor,
    table: Tensor,
    sites: tuple[tuple[Tensor | None, ...], tuple[bool, ...]],
    *,
    norm: Norm,
    attention: Attention,
    asking: Asking | None,
    mlp: GatedMlp,
    kernels: Kernels,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Returns the new tokens, and per branch the output to be kept where it is wanted.

    `table` [6, B, T or 1, 1, D], or [6, 1, 1, 1, D] where all tokens share it: shift, scale and gate of attention, then of
    the MLP. `sites`: what the block's `forward` takes as `reuse` and as `wanted`. `norm`: the one before `attention`.
    `asking`: cross attention, None for a block without.
    """
    reuse, wanted = sites
    if kernels.whole and _adds_all(table, sites, attention, mlp, kernels):
        return _run_in_products(x_BTSD, table, attention, asking, mlp, kernels), (None,) * len(reuse)
    attended, *asked, mixed = reuse
    crossed = asked[0] if asked else None
    asks = asking is not None and crossed is None
    x_asking: Tokens | None = None
    addends: tuple[Tensor, ...] = () if attended is None else (attended,)
    if attended is None:
        gate = _shared(table[2], kernels)
        if gate is not None and kernels.summed and attention.last is not None and not wanted[0] and not mlp.is_float8:
            x_BTSD, x = _norm_before_sum(kernels, x_BTSD, (), (table[0], table[1]), ahead(attention.last, gate))
            x_BTSD = attention.run(x, End(gate, x_BTSD))
        else:
            branch = attention.run(norm(x_BTSD, (), table[0], table[1])[1], End(gate))
            if mlp.is_float8 and asks:
                gating = None if gate is not None else table[2]
                x_BTSD, attended, x_asking = float8.gated_sum(x_BTSD, branch, gating, keeps=wanted[0])
            else:
                attended = branch if gate is not None else table[2] * branch
            addends = () if attended is None else (attended,)
    if asking is not None:
        if crossed is None:
            if x_asking is None:
                x_asking = x_BTSD = _sum(x_BTSD, addends)
            crossed = asking.run(x_asking, AS_IT_IS, None)
            addends = ()
        addends = (*addends, crossed)
    if mixed is not None:
        x_BTSD = _sum(x_BTSD, addends) + mixed
    else:
        x_BTSD, mixed = _mix(x_BTSD, addends, table[3:], mlp, kernels, wanted=wanted[-1])
    outputs = (attended, mixed) if asking is None else (attended, crossed, mixed)
    return x_BTSD, handed_over(outputs, wanted)


def _adds_all(
    table: Tensor,
    sites: tuple[tuple[Tensor | None, ...], tuple[bool, ...]],
    attention: Attention,
    mlp: GatedMlp,
    kernels: Kernels,
) -> bool:
    """Whether all branches are computed and none is kept, so that each may be added to the tokens by its product."""
    reuse, wanted = sites
    computes = all(each is None for each in reuse) and not any(wanted)
    return computes and attention.last is not None and not mlp.is_float8 and _shared(table[2], kernels) is not None


def _run_in_products(
    x_BTSD: Tensor, table: Tensor, attention: Attention, asking: Asking | None, mlp: GatedMlp, kernels: Kernels
) -> Tensor:
    """Returns the new tokens. The first norm adds the biases of all branches; what is not due yet is left out where read."""
    gates = table[2].flatten(), table[5].flatten()
    assert attention.last is not None, "attention can be added"
    after_text = ahead(mlp.last, gates[1])
    after_attention = after_text if asking is None else after_text + asking.last.bias
    biases = ahead(attention.last, gates[0]) + after_attention
    x_BTSD, x = _norm_before_sum(kernels, x_BTSD, (), (table[0], table[1]), biases)
    x_BTSD = attention.run(x, End(gates[0], x_BTSD))
    if asking is not None:
        x_BTSD = asking.run(x_BTSD, End(None, x_BTSD), after_attention)
    without = modulated_norm.fused_without if kernels.norm else modulated_norm.plain_without
    return mlp(without(x_BTSD, after_text, table[3], table[4]), fused=kernels.gelu, end=End(gates[1], x_BTSD))


def _mix(
    x_BTSD: Tensor, addends: Sequence[Tensor], table: Tensor, mlp: GatedMlp, kernels: Kernels, *, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Returns the tokens with addends and the MLP's branch, and the branch itself, at least where it is `wanted`."""
    gate = _shared(table[2], kernels)
    fused = kernels.gelu8 if mlp.is_float8 else kernels.gelu
    sums = kernels.sum8 if mlp.is_float8 else kernels.summed
    if gate is not None and sums and not wanted:
        if mlp.is_float8:
            total, rows = float8.norm_rows(x_BTSD, addends, table[0], table[1])
            return mlp(rows, fused=fused, end=End(gate, total)), None
        total, x = _norm_before_sum(kernels, x_BTSD, addends, (table[0], table[1]), ahead(mlp.last, gate))
        return mlp(x, fused=fused, end=End(gate, total)), None
    x_BTSD, tokens = norm_for(kernels, is_float8=mlp.is_float8)(x_BTSD, addends, table[0], table[1])
    mixed = mlp(tokens, fused=fused, end=End(gate))
    if gate is None:
        mixed = table[2] * mixed
    return x_BTSD + mixed, mixed


def _shared(gate: Tensor, kernels: Kernels) -> Tensor | None:
    """Returns the gate [D] that is to be in a product's weights: one that all tokens share."""
    return gate.flatten() if kernels.gated and gate.numel() == gate.shape[-1] else None


def _norm_before_sum(
    kernels: Kernels, x_BTSD: Tensor, addends: Sequence[Tensor], shift_scale: tuple[Tensor, Tensor], ahead: Tensor
) -> tuple[Tensor, Tensor]:
    norm = modulated_norm.fused if kernels.norm else modulated_norm.plain
    return norm(x_BTSD, addends, *shift_scale, ahead)


def _sum(x_BTSD: Tensor, addends: Sequence[Tensor]) -> Tensor:
    for addend in addends:
        x_BTSD = x_BTSD + addend
    return x_BTSD


def over_all_frames(
    x_BTSD: Tokens, attend: Callable[[Tokens], Tensor], *, num_frames: int, sp: SequenceParallel
) -> Tensor:
    """Has `attend` see all ranks' frames of a part of the patches. 8-bit rows do not travel: one rank has all frames.

    Attention over time keeps patches apart, of whichever row. So what comes, frame by frame, is one row of more patches to
    it, and lies as attention wants it.
    """
    if isinstance(x_BTSD, float8.Rows8) or sp.size == 1:
        return attend(x_BTSD)
    rows, _, patches, _ = x_BTSD.shape
    places = sp.parts(num_frames)
    x_TNPD = sp.all_to_all([x_BTSD.transpose(0, 1)], dim=2, places=places)[:num_frames]
    out_TPD = attend(x_TNPD.flatten(1, 3)[None])[0]
    return sp.all_to_all_back(out_TPD.unflatten(1, (rows, -1)), dim=2, size=patches, places=places, front=1)
