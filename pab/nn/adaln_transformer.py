"""What the transformers of adaLN-single blocks (`adaln_single.py`) have in common around their blocks.

Shape letters: B guidance rows x clips, L text tokens, C channels of text states, D channels of a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pab.execution.compiled import any_length
from pab.nn.adaln_single import (
    Attention,
    TextProjection,
    TimestepModulation,
    check_published,
    cut_text,
    modulated_norm,
    modulation_table,
)


def published_sizes(published: Mapping[str, Any], what: str) -> dict[str, int]:
    """Reads the sizes that every published `config.json` names. Raises ValueError naming what is not built."""
    check_published(published, what)
    heads, head_dim = int(published["num_attention_heads"]), int(published["attention_head_dim"])
    if published.get("cross_attention_dim", heads * head_dim) != heads * head_dim:
        raise ValueError(
            f"{what}: config cross_attention_dim={published['cross_attention_dim']}, needs {heads * head_dim}"
        )
    same = ("num_layers", "in_channels", "out_channels", "patch_size", "caption_channels")
    return {"num_heads": heads, "head_dim": head_dim} | {name: int(published[name]) for name in same}


class Ends(Protocol):
    """A transformer's layers before and behind its blocks."""

    @property
    def scale_shift_table(self) -> nn.Parameter:
        """Shift and scale before the last layer."""

    @property
    def adaln_single(self) -> TimestepModulation:
        """What makes modulation of a timestep."""

    @property
    def caption_projection(self) -> TextProjection:
        """What projects text states to the model's width."""

    @property
    def proj_out(self) -> nn.Linear:
        """The last layer."""


def keys_values_of(
    ends: Ends, attentions: Sequence[Attention], text_BLC: Tensor, mask_BL: Tensor | None, *, several: bool
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Returns a text's keys and values for each cross attention, and the bias of `cut_text`, whose arguments these are."""
    text_BLC, bias = cut_text(text_BLC.to(ends.proj_out.weight), mask_BL, several=several)
    text_BLD = ends.caption_projection(text_BLC)
    return tuple(any_length(attention.keys_values(text_BLD), 3) for attention in attentions), bias


def step_modulation(ends: Ends, timestep: float | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what a timestep, a float or [B], gives tokens [B, ...]: modulation of blocks [B, 6, D], embedding [B, D]."""
    if not isinstance(timestep, Tensor):
        timestep = torch.full((len(x),), timestep, device=x.device)
    modulation, embedded = ends.adaln_single(timestep)
    return modulation, embedded


def project_out(ends: Ends, x: Tensor, embedded_BD: Tensor) -> Tensor:
    """Turns tokens [B, a, b, D] into patches of the prediction."""
    table = modulation_table(ends.scale_shift_table, embedded_BD[:, None])
    patches: Tensor = ends.proj_out(modulated_norm(x, table[0], table[1]))
    return patches
