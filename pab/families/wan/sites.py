"""The broadcast sites of a Wan transformer."""

from __future__ import annotations

from pab.broadcast.sites import Site, block_sites


def wan_sites(num_layers: int) -> tuple[Site, ...]:
    """Returns the sites of a Wan transformer in running order; its 3-D self attention is of kind spatial."""
    return block_sites("blocks", num_layers, {"attn1": "spatial", "attn2": "cross", "ffn": "mlp"})
