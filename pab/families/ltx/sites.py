"""The broadcast sites of an LTX-Video transformer."""

from __future__ import annotations

from pab.broadcast.sites import PART_KINDS, Site, block_sites


def ltx_sites(num_layers: int) -> tuple[Site, ...]:
    """Returns the sites of an LTX-Video transformer in running order; its 3-D self attention is of kind spatial."""
    return block_sites("transformer_blocks", num_layers, PART_KINDS)
