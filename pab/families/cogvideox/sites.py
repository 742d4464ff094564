"""The broadcast sites of a CogVideoX transformer."""

from __future__ import annotations

from pab.broadcast.sites import PART_KINDS, Site, block_sites


def cogvideox_sites(num_layers: int) -> tuple[Site, ...]:
    """Returns the sites of a CogVideoX transformer in running order; its joint attention is of kind spatial."""
    return block_sites("transformer_blocks", num_layers, {part: PART_KINDS[part] for part in ("attn1", "ff")})
