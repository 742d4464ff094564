"""Prompts of which a family's own cleaning leaves little: the rows are told, since their clips would show something else.

Cleaning takes a millisecond. So only prompts that may lose something are cleaned here: those of few plain letters, and those
that hold what the rules of cleaning look for. And after `MOST_CLEANED` of them only "at least" is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from manifests.limits import Limits

MOST_CLEANED = 5_000
_MOST_NAMED = 5
_NOT_PLAIN = r"""[^A-Za-z\s.,;:'"!?-]"""
_PLAIN_SHARE = 0.75
_TRIGGERS = (
    r"(?i)https?:|www|<|shipping|download|click|\w\.(com|co|ru|net|org|edu|gov|it|png|jpe?g|bmp|webp|eps|pdf|apk|mp4)\b"
)


@dataclass(slots=True, kw_only=True)
class _Found:
    """The first rows of one family that lose their prompt or most of it, and how many there are."""

    emptied: int = 0
    shortened: int = 0
    first_emptied: list[int] = field(default_factory=list)
    first_shortened: list[int] = field(default_factory=list)


class CleaningCheck:
    """Looks at the prompts of batch after batch, with the cleaning of each row's family."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._found: dict[str, _Found] = {}
        self._cleaned = 0
        self._left_out = False
        self._missing: str | None = None

    def look(self, prompts: pa.Array, models: pa.Array, codes: npt.NDArray[np.int64], first_row: int) -> None:
        """Looks at a batch. `models`: those of the distinct settings; `codes`: the settings of each row."""
        named = models.to_pylist()
        for name in sorted(set(named)):
            family = self._limits.family(name)
            if family is None or family.clean_prompt is None or self._missing:
                continue
            rows = np.flatnonzero(np.array([each == name for each in named])[codes])
            for at in rows[_may_lose(prompts.take(pa.array(rows)))]:
                if self._cleaned == MOST_CLEANED:
                    self._left_out = True
                    break
                self._cleaned += 1
                prompt = prompts[int(at)].as_py()
                try:
                    left = _letters(family.clean_prompt(prompt))
                except ImportError as error:
                    self._missing = str(error)
                    break
                self._add(self._found.setdefault(name, _Found()), left, _letters(prompt), first_row + int(at))

    @staticmethod
    def _add(found: _Found, left: int, given: int, row: int) -> None:
        if given and not left:
            found.emptied += 1
            found.first_emptied += [row] if len(found.first_emptied) < _MOST_NAMED else []
        elif left < given / 2:
            found.shortened += 1
            found.first_shortened += [row] if len(found.first_shortened) < _MOST_NAMED else []

    def counts(self) -> dict[str, int]:
        """Returns of how many prompts cleaning leaves nothing, and of how many less than half."""
        each = self._found.values()
        return {"emptied": sum(found.emptied for found in each), "shortened": sum(found.shortened for found in each)}

    def warnings(self) -> tuple[str, ...]:
        """Returns a sentence for each family that loses prompts."""
        said = [_sentence(name, found, at_least=self._left_out) for name, found in sorted(self._found.items())]
        if self._missing:
            said.append(f"prompts were not looked at for what their family's cleaning leaves of them: {self._missing}")
        return tuple(sentence for sentence in said if sentence)


def _may_lose(prompts: pa.Array) -> npt.NDArray[np.bool_]:
    plain = pc.utf8_length(pc.replace_substring_regex(prompts, _NOT_PLAIN, "")).to_numpy()
    whole = pc.utf8_length(prompts).to_numpy()
    triggers = pc.match_substring_regex(prompts, _TRIGGERS).to_numpy(zero_copy_only=False)
    may: npt.NDArray[np.bool_] = (plain < _PLAIN_SHARE * whole) | triggers
    return may


def _letters(text: str) -> int:
    return sum(character.isalnum() for character in text)


def _sentence(name: str, found: _Found, *, at_least: bool) -> str:
    parts: Mapping[str, tuple[int, list[int]]] = {
        "nothing": (found.emptied, found.first_emptied),
        "less than half": (found.shortened, found.first_shortened),
    }
    told = [f"{what} of {_rows(count, first, at_least)}" for what, (count, first) in parts.items() if count]
    if not told:
        return ""
    return (
        f"{name} cleans prompts as its own program does, which drops Chinese characters, links and file names: it leaves "
        f"{' and '.join(told)}; write these prompts in English, or name another model"
    )


def _rows(count: int, first: list[int], at_least: bool) -> str:
    more = count - len(first)
    others = f" and {'at least ' if at_least else ''}{more:,} more" if more or at_least else ""
    return f"row{'s' if count > 1 else ''} {', '.join(map(str, first))}{others}"
