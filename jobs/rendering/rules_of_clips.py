"""The broadcast rules that a clip names."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.settings import JobSettings
from manifests.clip import Clip
from pab.broadcast.rules import Rules, rules_from_dict
from pab.family import Family


def clip_rules(clip: Clip, family: Family, settings: JobSettings) -> Rules:
    """Returns the broadcast rules that a clip names: the run's own, else the family's. Raises ValueError with all names."""
    own: Mapping[str, dict[str, object]] = settings.broadcast_rules or {}
    if clip.broadcast in own:
        return rules_from_dict(own[clip.broadcast])
    if (rules := family.rules_named(clip.broadcast)) is not None:
        return rules
    allowed = ", ".join([*own, *family.presets])
    raise ValueError(f"clip {clip.clip_id}: broadcast={clip.broadcast!r}, model {family.name} has {allowed}")
