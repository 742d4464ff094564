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
    """The clips of which each thing is said. What is said alike but for numbers and quoted words counts as one."""

    clips: Counter[str] = field(default_factory=Counter)
    words: dict[str, str] = field(default_factory=dict)

    def add(self, warnings: Iterable[str]) -> None:
        """Takes in one clip."""
        alike = {_DIFFERS.sub("...", warning)[:_MOST_CHARS]: warning[:_MOST_CHARS] for warning in warnings}
        self.clips.update(alike.keys())
        for kind, words in alike.items():
            # Numbers and words are shown as long as they are the same of all clips.
            self.words[kind] = words if self.words.get(kind, words) == words else kind

    def facts(self) -> list[dict[str, object]]:
        """Returns what is said of most clips first."""
        return [{"warning": self.words[kind], "clips": count} for kind, count in self.clips.most_common(_MOST_KINDS)]
