"""The broadcast sites of a HunyuanVideo transformer."""

from __future__ import annotations

from pab.broadcast.sites import THERE_AND_BACK, Site, block_sites


def hunyuan_video_sites(num_layers: int, num_single_layers: int) -> tuple[Site, ...]:
    """Returns the sites of a HunyuanVideo transformer in running order; its joint attention is of kind spatial.

    The blocks of one stream come after those of two and are counted on. Their MLP shares its last product with the
    attention, so it is no site.
    """
    two_streams = block_sites("transformer_blocks", num_layers, {"attn": "spatial", "ff": "mlp", "ff_context": "mlp"})
    one_stream = tuple(
        Site(
            name=f"single_transformer_blocks.{i}.attn",
            kind="spatial",
            stack="spatial",
            block=num_layers + i,
            all_to_alls=THERE_AND_BACK,
        )
        for i in range(num_single_layers)
    )
    return two_streams + one_stream
