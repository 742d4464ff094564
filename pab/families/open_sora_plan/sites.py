"""The broadcast sites of Open-Sora-Plan 1.2.0's transformer."""

from __future__ import annotations

from pab.broadcast.sites import PART_KINDS, Site, block_sites


def open_sora_plan_sites(num_layers: int) -> tuple[Site, ...]:
    """Returns the sites of Open-Sora-Plan 1.2.0 in running order; its 3-D self attention is of kind spatial."""
    return block_sites("transformer_blocks", num_layers, PART_KINDS)
