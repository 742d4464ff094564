"""What of prompts a model will not read: ends behind its text encoder's limit, unknown words, idle negative prompts.

Tokens are counted with the family's own tokenizer where its weights lie here, else estimated from letters. Only prompts that
may be too long are counted, and after `MOST_COUNTED` of them the estimate must do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from manifests.errors import cut, shown
from manifests.limits import Limits
from manifests.rules import FamilyRules

MOST_COUNTED = 20_000
_MOST_NAMED = 5
_MOST_WORDS = 8
_PIECES = r"\p{Han}|[\p{Hiragana}\p{Katakana}]|[\p{L}\p{N}]{1,8}|[^\s\p{L}\p{N}]"
"""About one token each: pieces of words, signs, Chinese characters. What is over counted is looked at with the tokenizer."""

CountTokens = Callable[[Sequence[str]], Sequence[int]]


@dataclass(slots=True, kw_only=True)
class _Rows:
    """How many rows something is the case in, and the first of them."""

    count: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, rows: npt.NDArray[np.int64]) -> None:
        self.count += len(rows)
        self.first += rows[: _MOST_NAMED - len(self.first)].tolist()

    def __str__(self) -> str:
        more = self.count - len(self.first)
        rows = ", ".join(map(str, self.first)) + (f" and {more:,} more" if more else "")
        return f"row{'s' if self.count > 1 else ''} {rows}"


@dataclass(slots=True, kw_only=True)
class _Found:
    """What was found in the rows of one family."""

    too_long: _Rows = field(default_factory=_Rows)
    estimated: bool = False
    unknown: _Rows = field(default_factory=_Rows)
    words: Counter[str] = field(default_factory=Counter)
    unread: _Rows = field(default_factory=_Rows)


class TextCheck:
    """Looks at the prompts of batch after batch, with what each row's family reads of them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._found: dict[str, _Found] = {}
        self._counters: dict[str, CountTokens | None] = {}
        self._counted = 0

    def look(
        self,
        prompts: pa.Array,
        negatives: pa.Array,
        models: pa.Array,
        scales: pa.Array,
        codes: npt.NDArray[np.int64],
        first_row: int,
    ) -> None:
        """Looks at a batch. `models`, `scales`: those of the distinct settings; `codes`: the settings of each row."""
        named = np.array(models.to_pylist(), object)
        unguided = scales.to_numpy(zero_copy_only=False) == 1.0
        for name in sorted(set(named)):
            family = self._limits.family(name)
            if family is None:
                continue
            found = self._found.setdefault(name, _Found())
            rows = np.flatnonzero((named == name)[codes])
            texts = prompts.take(pa.array(rows))
            found.too_long.add(rows[self._too_long(texts, family, found)] + first_row)
            self._look_for_unknown(texts, rows + first_row, family, found)
            said = pc.fill_null(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(negatives)), 0), fill_value=False)
            without = np.ones(len(codes), np.bool_) if family.negative_unread else unguided[codes]
            found.unread.add(rows[(said.to_numpy(zero_copy_only=False) & without)[rows]] + first_row)

    def _too_long(self, texts: pa.Array, family: FamilyRules, found: _Found) -> npt.NDArray[np.int64]:
        most = family.text_tokens
        if most is None:
            return np.empty(0, np.int64)
        # Cheap: a text has no more pieces than letters.
        may = np.flatnonzero(pc.utf8_length(texts).to_numpy(zero_copy_only=False) > most)
        if not len(may):
            return may
        if family.count_words is not None:
            counted = [family.count_words(text) for text in texts.take(pa.array(may)).to_pylist()]
            return may[np.array(counted, np.int64) > most]
        pieces = pc.count_substring_regex(texts.take(pa.array(may)), _PIECES).to_numpy(zero_copy_only=False) + 1
        if family.name not in self._counters:
            self._counters[family.name] = family.count_tokens() if family.count_tokens is not None else None
        count = self._counters[family.name]
        if count is None or self._counted + len(may) > MOST_COUNTED:
            found.estimated = True
            return may[pieces > most]
        may = may[pieces > most // 3]
        self._counted += len(may)
        exact = np.array(count(texts.take(pa.array(may)).to_pylist()), np.int64)
        return may[exact > most] if len(may) else may

    @staticmethod
    def _look_for_unknown(texts: pa.Array, rows: npt.NDArray[np.int64], family: FamilyRules, found: _Found) -> None:
        if family.unknown_words is None:
            return
        bad = []
        for row, text in zip(rows, texts.to_pylist(), strict=True):
            if words := family.unknown_words(text):
                bad.append(row)
                found.words.update(words)
        found.unknown.add(np.array(bad, np.int64))

    def counts(self) -> dict[str, int]:
        """Returns in how many rows each thing is the case."""
        each = self._found.values()
        return {
            "cut": sum(found.too_long.count for found in each),
            "unknown_words": sum(found.unknown.count for found in each),
            "negative_unread": sum(found.unread.count for found in each),
        }

    def warnings(self) -> tuple[str, ...]:
        """Returns a sentence for each thing that is the case in rows of a family."""
        return tuple(
            sentence for name, found in sorted(self._found.items()) for sentence in self._sentences(name, found)
        )

    def _sentences(self, name: str, found: _Found) -> Iterator[str]:
        family = self._limits.family(name)
        assert family is not None, "only rows of known families were looked at"
        if found.too_long.count:
            by = "estimated by letters, its tokenizer is not here" if found.estimated else "by its tokenizer"
            what, how = ("tokens", f" ({by})") if family.count_words is None else ("words that it knows", "")
            yield (
                f"the text encoder of {name} reads {family.text_tokens} {what} and cuts the rest: "
                f"{found.too_long.count:,} of the prompts are longer{how}: {found.too_long}; shorten them"
            )
        if found.unknown.count:
            words = ", ".join(shown(cut(word, 30)) for word, _ in found.words.most_common(_MOST_WORDS))
            more = len(found.words) - _MOST_WORDS
            others = f" and {more:,} more words" if more > 0 else ""
            yield f"{name} does not know {words}{others}, in {found.unknown}; it renders the rest of the prompt"
        if found.unread.count:
            why = (
                f"{name} takes guidance_scale as an input, in one pass"
                if family.negative_unread
                else "guidance is off at guidance_scale=1"
            )
            yield f"negative prompts have no effect in {found.unread}: {why}; leave them out"
