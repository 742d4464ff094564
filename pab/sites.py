"""The broadcast sites of an STDiT3, by depth alone, so that planning needs no model code."""

from __future__ import annotations

from pab.plan import Site

PARTS = ("attn", "cross_attn", "mlp")


def stdit3_sites(depth: int) -> tuple[Site, ...]:
    """Returns the sites of a model in the order in which they run."""
    return tuple(
        Site(name=f"{stack}_blocks.{i}.{part}", kind=kind, stack=stack, block=i)
        for i in range(depth)
        for stack in ("spatial", "temporal")
        for part, kind in zip(PARTS, (stack, "cross", "mlp"), strict=True)
    )
