"""The broadcast sites of an LTX-2 transformer."""

from __future__ import annotations

from pab.broadcast.sites import Site, block_sites

_KINDS = {"attn1": "spatial", "attn2": "cross", "audio_attn2": "cross", "ff": "mlp", "audio_ff": "mlp"}


def ltx2_sites(num_layers: int) -> tuple[Site, ...]:
    """Returns the sites in running order; the video's self attention over space and time is of kind spatial.

    The attention between video and sound, which keeps them together, and the sound's own, which is short, are no sites.
    """
    return block_sites("transformer_blocks", num_layers, _KINDS)
