"""The groups of sites that a searched plan decides for: a kind in a stack, whole or in ranges of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pab.broadcast.sites import Site
from pab.broadcast.step_rules import StepGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteGroup:
    """Sites that share one decision. `blocks` None: all of the stack that have a site of this kind."""

    kind: str
    stack: str
    names: tuple[str, ...]
    blocks: tuple[int, ...] | None = None

    @property
    def label(self) -> str:
        """Names the group for people: `spatial`, `cross in temporal`, `mlp in spatial 0..13`."""
        if self == WHOLE_PASS:
            return "whole pass"
        place = self.kind if self.kind == self.stack else f"{self.kind} in {self.stack}"
        blocks = "" if self.blocks is None else f" {self.blocks[0]}..{self.blocks[-1]}"
        return f"{place}{blocks}"

    def computing_at(self, steps: Sequence[int]) -> StepGroup:
        """Returns the group with the steps at which it computes."""
        return StepGroup(kind=self.kind, stack=self.stack, compute=tuple(steps), blocks=self.blocks)


WHOLE_PASS = SiteGroup(kind="pass", stack="model", names=("pass",))
"""Stands beside the groups of sites for the prediction of a pass, which may be reused as a whole."""


def site_groups(sites: Sequence[Site], *, ranges: int = 1) -> tuple[SiteGroup, ...]:
    """Returns the groups in running order; `ranges` cuts the blocks of each into so many of about one size."""
    by_place: dict[tuple[str, str], list[Site]] = {}
    for site in sites:
        by_place.setdefault((site.kind, site.stack), []).append(site)
    groups: list[SiteGroup] = []
    for (kind, stack), members in by_place.items():
        blocks = sorted({site.block for site in members})
        parts = min(ranges, len(blocks))
        for part in range(parts):
            chosen = blocks[part * len(blocks) // parts : (part + 1) * len(blocks) // parts]
            names = tuple(site.name for site in members if site.block in chosen)
            groups.append(
                SiteGroup(kind=kind, stack=stack, names=names, blocks=tuple(chosen) if parts > 1 else None)
            )  # fmt: skip
    return tuple(groups)
