"""The broadcast sites of Open-Sora-Plan 1.2.0's transformer."""

from __future__ import annotations

from pab.broadcast.sites import PART_KINDS, THERE_AND_BACK, Site


def open_sora_plan_sites(num_layers: int) -> tuple[Site, ...]:
    """Returns the sites of Open-Sora-Plan 1.2.0 in running order; its 3-D self attention is of kind spatial."""
    return tuple(
        Site(
            name=f"transformer_blocks.{i}.{part}",
            kind=kind,
            stack="spatial",
            block=i,
            all_to_alls=THERE_AND_BACK if part == "attn1" else 0,
        )
        for i in range(num_layers)
        for part, kind in PART_KINDS.items()
    )
