"""The broadcast sites of Latte-1's transformer, which is Open-Sora-Plan 1.1.0's too."""

from __future__ import annotations

from pab.broadcast.sites import PART_KINDS, THERE_AND_BACK, Site

LATTE_PARTS = {"spatial": ("attn1", "attn2", "ff"), "temporal": ("attn1", "ff")}
LATTE_STACKS = {"spatial": "transformer_blocks", "temporal": "temporal_transformer_blocks"}


def latte_sites(num_layers: int) -> tuple[Site, ...]:
    """Returns the sites of Latte-1 or Open-Sora-Plan 1.1.0 in the order in which they run."""
    return tuple(
        Site(
            name=f"{LATTE_STACKS[stack]}.{i}.{part}",
            kind=stack if part == "attn1" else PART_KINDS[part],
            stack=stack,
            block=i,
            all_to_alls=THERE_AND_BACK if (stack, part) == ("temporal", "attn1") else 0,
        )
        for i in range(num_layers)
        for stack, parts in LATTE_PARTS.items()
        for part in parts
    )
