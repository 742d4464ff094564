"""The forward pass of blocks whose attention and MLP have a gate each: STDiT3's and Latte's.

What is kept is a branch behind its gate. Sums wait for the next norm, which takes them into its own pass over the tokens.

Shape letters: B guidance rows x clips, T frames (this rank's), S patches of a frame, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from pab.broadcast.state import handed_over
from pab.kernels import float8, modulated_norm
from pab.kernels.choice import Kernels
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

    def __call__(self, x: Tokens, *, fused: bool = False) -> Tensor:
        """Returns [B, T, S, D]. `fused`: GELU in the first matrix product's epilogue."""


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
    attend: Callable[[Tokens], Tensor],
    ask_text: Callable[[Tokens], Tensor] | None,
    mlp: GatedMlp,
    kernels: Kernels,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Returns the new tokens, and per branch the output to be kept where it is wanted.

    `table` [6, B, T or 1, 1, D]: shift, scale and gate of attention, then of the MLP. `sites`: what the block's `forward`
    takes as `reuse` and as `wanted`. `norm`: the one before attention. `ask_text`: cross attention, None for a block without.
    """
    reuse, wanted = sites
    attended, *asked, mixed = reuse
    crossed = asked[0] if asked else None
    asks = ask_text is not None and crossed is None
    asking: Tokens | None = None
    if attended is None:
        branch = attend(norm(x_BTSD, (), table[0], table[1])[1])
        if mlp.is_float8 and asks:
            x_BTSD, attended, asking = float8.gated_sum(x_BTSD, branch, table[2], keeps=wanted[0])
        else:
            attended = table[2] * branch
    addends: tuple[Tensor, ...] = () if attended is None else (attended,)
    if ask_text is not None:
        if crossed is None:
            if asking is None:
                asking = x_BTSD = x_BTSD + addends[0]
            crossed = ask_text(asking)
            addends = ()
        addends = (*addends, crossed)
    if mixed is None:
        x_BTSD, x = norm_for(kernels, is_float8=mlp.is_float8)(x_BTSD, addends, table[3], table[4])
        mixed = table[5] * mlp(x, fused=kernels.gelu)
    else:
        for addend in addends:
            x_BTSD = x_BTSD + addend
    outputs = (attended, mixed) if ask_text is None else (attended, crossed, mixed)
    return x_BTSD + mixed, handed_over(outputs, wanted)


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
