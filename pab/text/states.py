"""Text states: an encoder turns prompts into them, and a transformer reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TextStates:
    """Text states of several prompts: `y_BLC`, `mask_BL` (1 for tokens that count), and per prompt what to warn about.

    `pooled_BD`: a second encoder's summary of each prompt, for models that read one; `second`: its states of them.
    """

    y_BLC: Tensor
    mask_BL: Tensor
    warnings: tuple[tuple[str, ...], ...]
    pooled_BD: Tensor | None = None
    second: TextStates | None = None

    def row(self, index: int) -> TextStates:
        """Returns one prompt's states."""
        rows = slice(index, index + 1)
        return TextStates(
            y_BLC=self.y_BLC[rows],
            mask_BL=self.mask_BL[rows],
            warnings=self.warnings[rows],
            pooled_BD=None if self.pooled_BD is None else self.pooled_BD[rows],
            second=None if self.second is None else self.second.row(index),
        )


def joined(rows: Sequence[TextStates]) -> TextStates:
    """Returns the states of all rows below each other."""
    pooled = [row.pooled_BD for row in rows if row.pooled_BD is not None]
    second = [row.second for row in rows if row.second is not None]
    return TextStates(
        y_BLC=torch.cat([row.y_BLC for row in rows]),
        mask_BL=torch.cat([row.mask_BL for row in rows]),
        warnings=tuple(warning for row in rows for warning in row.warnings),
        pooled_BD=torch.cat(pooled) if pooled else None,
        second=joined(second) if second else None,
    )
