"""The forward pass of blocks whose attention and MLP have a gate each: STDiT3's and Latte's.

What is kept is a branch behind its gate. Sums wait for the next norm, which takes them into its own pass over the tokens.
Where all tokens share their gates, those may be in the weights of the branches' last products, and a branch that nobody
keeps is added to the tokens by its product (`pab.kernels.product_end`).

Shape letters: B guidance rows x clips, T frames (this rank's), S patches of a frame, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor, nn

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
    ask_text: Callable[[Tokens], Tensor] | None,
    mlp: GatedMlp,
    kernels: Kernels,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Returns the new tokens, and per branch the output to be kept where it is wanted.

    `table` [6, B, T or 1, 1, D], or [6, 1, 1, 1, D] where all tokens share it: shift, scale and gate of attention, then of
    the MLP. `sites`: what the block's `forward` takes as `reuse` and as `wanted`. `norm`: the one before `attention`.
    `ask_text`: cross attention, None for a block without.
    """
    reuse, wanted = sites
    attended, *asked, mixed = reuse
    crossed = asked[0] if asked else None
    asking: Tokens | None = None
    if attended is None:
        asks = ask_text is not None and crossed is None
        x_BTSD, attended, addends, asking = _attend(
            x_BTSD, table[:3], norm, attention, kernels, asks8=asks and mlp.is_float8, wanted=wanted[0]
        )
    else:
        addends = (attended,)
    if ask_text is not None:
        if crossed is None:
            if asking is None:
                asking = x_BTSD = _sum(x_BTSD, addends)
            crossed = ask_text(asking)
            addends = ()
        addends = (*addends, crossed)
    if mixed is not None:
        x_BTSD = _sum(x_BTSD, addends) + mixed
    else:
        x_BTSD, mixed = _mix(x_BTSD, addends, table[3:], mlp, kernels, wanted=wanted[-1])
    outputs = (attended, mixed) if ask_text is None else (attended, crossed, mixed)
    return x_BTSD, handed_over(outputs, wanted)


def _attend(
    x_BTSD: Tensor,
    table: Tensor,
    norm: Norm,
    attention: Attention,
    kernels: Kernels,
    *,
    asks8: bool,
    wanted: bool,
) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...], Tokens | None]:
    """Returns the tokens, the branch of attention, what is still to be added, and 8-bit rows of the sum.

    The branch is there at least where it is `wanted`. `asks8`: rows are wanted; they may come instead of an addend.
    """
    gate = _shared(table[2], kernels)
    if gate is not None and kernels.summed and isinstance(attention.last, nn.Linear) and not wanted:
        total, x = _norm_before_sum(kernels, x_BTSD, (), table, ahead(attention.last, gate))
        return attention.run(x, End(gate, total)), None, (), None
    branch = attention.run(norm(x_BTSD, (), table[0], table[1])[1], End(gate))
    if asks8:
        x_BTSD, attended, rows = float8.gated_sum(x_BTSD, branch, table[2] if gate is None else None, keeps=wanted)
        return x_BTSD, attended, (), rows
    attended = branch if gate is not None else table[2] * branch
    return x_BTSD, attended, (attended,), None


def _mix(
    x_BTSD: Tensor, addends: Sequence[Tensor], table: Tensor, mlp: GatedMlp, kernels: Kernels, *, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Returns the tokens with addends and the MLP's branch, and the branch itself, at least where it is `wanted`."""
    gate = _shared(table[2], kernels)
    fused = kernels.gelu8 if mlp.is_float8 else kernels.gelu
    if gate is not None and kernels.summed and not mlp.is_float8 and not wanted:
        total, x = _norm_before_sum(kernels, x_BTSD, addends, table, ahead(mlp.last, gate))
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
    kernels: Kernels, x_BTSD: Tensor, addends: Sequence[Tensor], table: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the tokens to which a product is to be added, with its gated bias in them, and their norm without it."""
    norm = modulated_norm.fused if kernels.norm else modulated_norm.plain
    return norm(x_BTSD, addends, table[0], table[1], bias)


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
