"""The broadcast sites of a HunyuanVideo 1.5 transformer."""

from __future__ import annotations

from pab.broadcast.sites import Site, block_sites


def hunyuan_video_15_sites(num_layers: int) -> tuple[Site, ...]:
    """Returns the sites in running order; the joint attention of video and text is of kind spatial."""
    return block_sites("transformer_blocks", num_layers, {"attn": "spatial", "ff": "mlp", "ff_context": "mlp"})
