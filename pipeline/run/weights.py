"""Which weights a run's families have: looked up when the first row names a family, and kept for the whole run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pab.family import Family
from pab.weights.digest import weights_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class RunWeights:
    """One family's weights.

    `asked`: as the user says it, None for the family's own. `pinned`: what jobs load, on the hub a certain commit.
    `digest` names them in the digests of clips.
    """

    asked: str | None
    pinned: str | None
    digest: str

    def __str__(self) -> str:
        return self.digest if self.pinned == self.asked else f"{self.digest} ({self.pinned})"


class WeightsLookup:
    """Finds each family's weights once: a hub may take long to answer, so only families that rows name are looked up.

    `asked`: what the user gives a family by name, None for its own. `begun`: the weights of a run that is continued, even if
    a branch of the hub has moved since.
    """

    def __init__(self, asked: Callable[[str], str | None], begun: Mapping[str, RunWeights]) -> None:
        self._asked, self._begun = asked, begun
        self._found: dict[str, RunWeights] = {}

    @property
    def found(self) -> Mapping[str, RunWeights]:
        """What has been looked up so far, by family."""
        return self._found

    def find(self, family: Family) -> RunWeights:
        """Returns a family's weights. Raises ValueError or OSError saying why they cannot be used."""
        if family.name not in self._found:
            self._found[family.name] = self._look_up(family)
        return self._found[family.name]

    def _look_up(self, family: Family) -> RunWeights:
        asked = self._asked(family.name)
        begun = self._begun.get(family.name)
        pinned = begun.pinned if begun and begun.asked == asked else family.pin(asked)
        digest = family.weights_digest(pinned)
        if begun and begun.asked == asked and begun.digest != digest and _named_by_all_files(begun):
            digest = begun.digest
        return RunWeights(asked=asked, pinned=pinned, digest=digest)


def _named_by_all_files(begun: RunWeights) -> bool:
    """Whether a run of an earlier version named this folder by all of its files, and all of them are still the same."""
    folder = Path(begun.pinned or "").expanduser()
    return begun.pinned is not None and folder.is_dir() and weights_digest(folder) == begun.digest
