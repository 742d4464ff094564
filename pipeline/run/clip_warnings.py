"""What records of clips warn of, counted over a run: a prompt that was cut, words that the model does not know."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

_MOST_KINDS, _MOST_CHARS = 20, 300
_DIFFERS = re.compile(r"'[^']*'|\"[^\"]*\"|\b\d[\d.,]*\b")


@dataclass(slots=True)
class WarningCounts:
    """By what is said, without its numbers and quoted words, the clips of which it is said."""

    clips: Counter[str] = field(default_factory=Counter)

    def add(self, warnings: Iterable[str]) -> None:
        """Takes in one clip."""
        self.clips.update({_DIFFERS.sub("...", warning)[:_MOST_CHARS] for warning in warnings})

    def facts(self) -> list[dict[str, object]]:
        """Returns what is said of most clips first."""
        return [{"warning": said, "clips": count} for said, count in self.clips.most_common(_MOST_KINDS)]
