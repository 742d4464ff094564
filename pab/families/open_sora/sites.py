"""The broadcast sites of an STDiT3."""

from __future__ import annotations

from pab.broadcast.sites import THERE_AND_BACK, Site

PARTS = ("attn", "cross_attn", "mlp")
"""Of a block."""


def stdit3_sites(depth: int) -> tuple[Site, ...]:
    """Returns the sites of an STDiT3 in the order in which they run."""
    return tuple(
        Site(
            name=f"{stack}_blocks.{i}.{part}",
            kind=kind,
            stack=stack,
            block=i,
            all_to_alls=THERE_AND_BACK if kind == "temporal" else 0,
        )
        for i in range(depth)
        for stack in ("spatial", "temporal")
        for part, kind in zip(PARTS, (stack, "cross", "mlp"), strict=True)
    )
