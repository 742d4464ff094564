"""The alarms there are, and how many clips have which: counted clip by clip, told in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.quality.headline import many

ALARMS = {
    "blank": "nearly all frames are of one colour",
    "frozen": "nothing changes from the first frame to any other",
    "flickering": "the brightness of whole areas goes up and down from frame to frame",
    "clipped": "most values are the darkest or the brightest there are",
}
"""Word in records and reports -> what it means."""

SHOWN = 24
"""Clips with an alarm that are named."""


@dataclass(slots=True)
class AlarmCounts:
    """Counts of the clips so far. `looked_at`: those whose frames were looked at; earlier versions did not look."""

    looked_at: int = 0
    clips: int = 0
    by_kind: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ALARMS, 0))
    first: list[dict[str, Any]] = field(default_factory=list)

    def add(self, clip_id: str, alarms: Sequence[str] | None, video: str | None) -> None:
        """Takes in a rendered clip, with the path of its video; `alarms` None where nobody has looked."""
        self.looked_at += alarms is not None
        if not alarms:
            return
        self.clips += 1
        for alarm in alarms:
            self.by_kind[alarm] = self.by_kind.get(alarm, 0) + 1
        if len(self.first) < SHOWN:
            self.first.append({"clip_id": clip_id, "alarms": list(alarms), "video": video})

    def facts(self) -> dict[str, Any]:
        """Returns the counts as JSON values, with the first clips that have an alarm."""
        kinds = {alarm: count for alarm, count in self.by_kind.items() if count}
        return {"looked_at": self.looked_at, "clips": self.clips, "by_kind": kinds, "first": list(self.first)}


def alarm_text(facts: Mapping[str, Any] | None) -> str:
    """Writes counts in one line: `4 of 8 clips: 4 blank (c1, c3, c4, c7)`."""
    if not facts or not facts["looked_at"]:
        return "not known, no clip was looked at"
    whole = many(facts["looked_at"], "clip")
    if not facts["clips"]:
        return f"none in {whole}"
    kinds = ", ".join(f"{count:,} {alarm}" for alarm, count in facts["by_kind"].items())
    names = ", ".join(str(clip["clip_id"]) for clip in facts["first"])
    rest = facts["clips"] - len(facts["first"])
    return f"{facts['clips']:,} of {whole}: {kinds} ({names}{f' and {rest:,} more' if rest > 0 else ''})"
