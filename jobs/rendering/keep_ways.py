"""The ways to render a clip with less and less memory for kept outputs, for a device that has no more.

As asked for; then as 8-bit integers; then under rules that keep less (`pab.broadcast.smaller`); then without broadcast.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from manifests.clip import Clip
from pab.broadcast.foresight import ForesightRules
from pab.broadcast.rules import NO_BROADCAST, Rules
from pab.broadcast.smaller import smaller_rules
from pab.family import Family

NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepWay:
    """How a clip's outputs are kept: how they are stored, and the rules, with their name, that say which are."""

    keep: str
    broadcast: str
    rules: Rules

    def __str__(self) -> str:
        return f"broadcast {self.broadcast}, keep {self.keep}"


def ways_down(family: Family, broadcast: str, rules: Rules, keep: str, *, few: bool) -> tuple[KeepWay, ...]:
    """Returns the ways of a clip, each with less memory than the one before; the first is as asked for.

    `few`: at most three of them, for ranks that share a clip: each way down ends their group, and a job that has ended
    without a clip is started again only so often.
    """
    ways = tuple(_ways(family, broadcast, rules, keep))
    return (*ways[:2], ways[-1]) if few and len(ways) > 3 else ways


def _ways(family: Family, broadcast: str, rules: Rules, keep: str) -> Iterator[KeepWay]:
    yield KeepWay(keep=keep, broadcast=broadcast, rules=rules)
    if rules == NO_BROADCAST:
        return
    if not isinstance(rules, ForesightRules):
        if keep != "int8":
            yield KeepWay(keep="int8", broadcast=broadcast, rules=rules)
        for name, smaller in smaller_rules(broadcast, rules, family.sites).items():
            yield KeepWay(keep="int8", broadcast=name, rules=smaller)
    yield KeepWay(keep=keep, broadcast=NONE, rules=NO_BROADCAST)


def kind_key(clip: Clip) -> str:
    """Names the clips that need as much memory as this one, of the same size, broadcast and branches: 12 hex digits."""
    kind = [clip.num_frames, clip.height, clip.width, clip.guidance_scale != 1.0, clip.broadcast]
    return hashlib.sha256(json.dumps(kind).encode()).hexdigest()[:12]
