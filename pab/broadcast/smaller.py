"""Rules that keep less memory than a preset's: without cross attention, then in fewer blocks.

A kept output of any attention takes the same memory, and cross attention saves the least time, so it goes first. Of blocks
the first ones stay, as in the published rules for MLPs. What these rules do to a video's quality has not been measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pab.broadcast.rules import ATTENTION_KINDS, BroadcastRules, Rules
from pab.broadcast.sites import Site

_PARTS = {"half": 2, "quarter": 4}
"""Word in a name -> of how many blocks one reuses."""


def smaller_rules(name: str, rules: Rules, sites: Sequence[Site]) -> dict[str, BroadcastRules]:
    """Returns by name what keeps less than the rules of this name, the most first; none for plans of steps and Foresight."""
    if not isinstance(rules, BroadcastRules):
        return {}
    return dict(_smaller(name, rules, max(site.block for site in sites) + 1))


def _smaller(name: str, rules: BroadcastRules, num_blocks: int) -> Iterator[tuple[str, BroadcastRules]]:
    if rules.cross is not None and (rules.spatial is not None or rules.temporal is not None):
        name, rules = f"{name}-nocross", replace(rules, cross=None)
        yield name, rules
    held = {kind: rule for kind in ATTENTION_KINDS if (rule := rules.attention(kind)) is not None}
    if not held or any(rule.blocks is not None for rule in held.values()):
        return
    for word, part in _PARTS.items():
        if num_blocks >= part:
            blocks = tuple(range(num_blocks // part))
            fewer = {kind: replace(rule, blocks=blocks) for kind, rule in held.items()}
            yield (
                f"{name}-{word}",
                BroadcastRules(
                    spatial=fewer.get("spatial"),
                    temporal=fewer.get("temporal"),
                    cross=fewer.get("cross"),
                    mlp=rules.mlp,
                ),
            )
