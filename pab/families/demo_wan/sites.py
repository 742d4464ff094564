"""The broadcast sites of demo_wan's transformer, which is Wan's."""

from __future__ import annotations

from pab.broadcast.sites import Site
from pab.families.demo_wan.config import NUM_LAYERS
from pab.families.wan.sites import wan_sites


def demo_wan_sites() -> tuple[Site, ...]:
    """Returns the sites in running order."""
    return wan_sites(NUM_LAYERS)
