"""Which weights a run's families have: looked up when the first row names a family, and kept for the whole run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from pab.family import Family
from pab.weights.digest import weights_digest
from pab.weights.lora import Lora, at_hand, pin_lora, read_header, read_lora, shapes_in
from pab.weights.lora_keys import find_changes, read_modules
from pipeline.run.settings import absolute

Loras = tuple[Lora, ...]
NOT_LOOKED_AT = "not looked at"
"""The digest of weights that only `submit` asks the hub for."""
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[^\s,]+)?(,[\w-][\w.-]*/[\w.-]+(@[^\s,]+)?)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunWeights:
    """One family's weights, and the LoRAs that are added to them.

    `asked`: as the user says it, None for the family's own. `pinned`: what jobs load, on the hub a certain commit.
    `digest` names them in the digests of clips. `asked_loras`, `loras`: the same for LoRAs; the latter have digests.
    `row_loras`: those that rows name instead, by what they say.
    """

    asked: str | None
    pinned: str | None
    digest: str
    asked_loras: Loras = ()
    loras: Loras = ()
    row_loras: Mapping[str, Loras] = field(default_factory=dict)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Returns what run.json holds; runs from before there were LoRAs have none. Raises TypeError for other keys."""
        named = {name: tuple(Lora(**lora) for lora in values.get(name, ())) for name in ("asked_loras", "loras")}
        rows = {text: tuple(Lora(**lora) for lora in held) for text, held in values.get("row_loras", {}).items()}
        return cls(**{**values, **named, "row_loras": rows})

    @property
    def loras_text(self) -> str:
        """The LoRAs with their digests, for people."""
        return loras_text(self.loras)

    def __str__(self) -> str:
        return self.digest if self.pinned == self.asked else f"{self.digest} ({self.pinned})"


class WeightsLookup:
    """Finds each family's weights once: a hub may take long to answer, so only families that rows name are looked up.

    `asked`: what the user gives a family by name, None for its own. `begun`: the weights of a run that is continued, even if
    a branch of the hub has moved since. `loras`: those that the user gives, by family. `ask_hub`: whether weights of the hub
    are looked up; checking and planning need no weights, so they do without.
    """

    def __init__(
        self,
        asked: Callable[[str], str | None],
        begun: Mapping[str, RunWeights],
        loras: Mapping[str, Loras] | None = None,
        *,
        ask_hub: bool = True,
    ) -> None:
        self._asked, self._begun, self._loras = asked, begun, loras or {}
        self._ask_hub = ask_hub
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

    def find_row_loras(self, family: Family, texts: Sequence[str]) -> Loras:
        """Returns the LoRAs that rows name. Raises ValueError or OSError saying why they cannot be used."""
        weights, key = self.find(family), ";".join(texts)
        if key not in weights.row_loras:
            begun = self._begun.get(family.name)
            known = begun.row_loras.get(key) if begun else None
            found = tuple(map(self._pin_lora, known or named_loras(family, texts)))
            check_loras(family, found, weights.pinned)
            self._found[family.name] = replace(weights, row_loras={**weights.row_loras, key: found})
        return self._found[family.name].row_loras[key]

    def _look_up(self, family: Family) -> RunWeights:
        asked = self._asked(family.name)
        begun = self._begun.get(family.name)
        if not self._ask_hub and not (begun and begun.asked == asked) and _is_on_hub(family, asked):
            loras = self._loras.get(family.name, ())
            found = tuple(map(self._pin_lora, loras))
            return RunWeights(asked=asked, pinned=None, digest=NOT_LOOKED_AT, asked_loras=loras, loras=found)
        pinned = begun.pinned if begun and begun.asked == asked else family.pin(asked)
        digest = family.weights_digest(pinned)
        if begun and begun.asked == asked and begun.digest != digest and _named_by_all_files(begun):
            digest = begun.digest
        loras = self._loras.get(family.name, ())
        known = begun.loras if begun and begun.asked_loras == loras else loras
        found = tuple(map(self._pin_lora, known))
        check_loras(family, found, pinned)
        return RunWeights(asked=asked, pinned=pinned, digest=digest, asked_loras=loras, loras=found)

    def _pin_lora(self, lora: Lora) -> Lora:
        here = Path(lora.place).expanduser().is_file()
        return pin_lora(lora) if here or self._ask_hub or lora.digest else replace(lora, digest=NOT_LOOKED_AT)


def _is_on_hub(family: Family, asked: str | None) -> bool:
    """Whether only the hub has these weights. What can be neither a folder nor a hub id is looked up, and refused."""
    if not family.on_hub:
        return False
    return asked is None or (not Path(asked).expanduser().exists() and _HUB_ID.fullmatch(asked) is not None)


def named_loras(family: Family, texts: Sequence[str]) -> Loras:
    """Returns the LoRAs that are said for a family: with component, files here by absolute path. Raises ValueError."""
    if family.loras is None:
        raise ValueError(f"{family.name} takes no LoRA; leave it out")
    found: Loras = ()
    for text in texts:
        lora = family.loras.placed(read_lora(text), family.name)
        # A hub id looks like a relative path: it is one only if no file here has that name.
        lora = replace(lora, place=absolute(lora.place)) if Path(lora.place).expanduser().exists() else lora
        if any((lora.place, lora.component) == (other.place, other.component) for other in found):
            raise ValueError(f"{text}: named twice; give it once")
        found = (*found, lora)
    return found


def loras_text(loras: Loras) -> str:
    """Returns LoRAs with their digests, for people."""
    return ", ".join(f"{lora} ({lora.digest})" for lora in loras) or "none"


def loras_identity(loras: Loras) -> str:
    """Returns the part of a clip's digest that says which LoRAs are added; empty where none are."""
    return f" loras {' '.join(lora.digest for lora in loras)}" if loras else ""


def check_loras(family: Family, loras: Loras, weights: str | None) -> None:
    """Looks at the keys of LoRAs that are on this machine, and at their shapes where the weights are as well.

    Others are looked at when a job loads them. Raises CheckpointError, which names key and file.
    """
    for lora in loras:
        path = at_hand(lora)
        if path is None or family.loras is None:
            continue
        header = read_header(path)
        parameters = shapes_in(Path(weights).expanduser() / lora.component) if weights else None
        if parameters is None:
            read_modules(header, component=lora.component, file=lora.place)
        else:
            find_changes(header, parameters, family.loras, component=lora.component, file=lora.place)


def _named_by_all_files(begun: RunWeights) -> bool:
    """Whether a run of an earlier version named this folder by all of its files, and all of them are still the same."""
    folder = Path(begun.pinned or "").expanduser()
    return begun.pinned is not None and folder.is_dir() and weights_digest(folder) == begun.digest
