"""Rows that name LoRAs: the column `lora` as one text for each row, and what a family makes of it.

A row that names some has these alone, whatever the run says; a row that says `none` has none, an empty one those of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from manifests.errors import SHOWN_CHARS, Problem, shown
from manifests.rules import FamilyRules, RowLoras
from manifests.schema import LORA_SCHEMA, as_strings

LORA = "lora"
SEPARATOR = ";"
"""Between LoRAs that are written as one string."""
NO_LORA = "none"
MAX_BYTES = 4096
"""Of one row."""


def read_row_loras(column: pa.Array, first_row: int) -> tuple[pa.Array, list[Problem]]:
    """Returns what a column of strings, or of lists of them, says: LoRAs with `;` between them, null where there are none."""
    column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    problems: list[Problem] = []
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        listed, column = column.is_valid(), pc.binary_join(column.cast(pa.list_(pa.string())), SEPARATOR)
        holes = np.flatnonzero(pc.and_(listed, column.is_null()).to_numpy(zero_copy_only=False))
        problems += [_problem(first_row + int(at), "a list with a null", "a list of strings is needed") for at in holes]
    texts, bad = as_strings(column)
    problems += [_problem(first_row + at, value, "valid UTF-8 is needed") for at, value in bad]
    long = pc.fill_null(pc.greater(pc.binary_length(texts), MAX_BYTES), fill_value=False)
    for at in np.flatnonzero(long.to_numpy(zero_copy_only=False)):
        value = pc.utf8_slice_codeunits(texts[int(at)], 0, SHOWN_CHARS + 1).as_py()
        problems.append(_problem(first_row + int(at), shown(value), f"{MAX_BYTES} bytes of LoRAs are allowed"))
    texts = pc.if_else(long, pa.scalar(None, pa.string()), texts)
    # Few texts are different, and each is looked at once.
    coded = texts.dictionary_encode()
    plain = [SEPARATOR.join(split_loras(text)) or None for text in coded.dictionary.to_pylist()]
    return pa.array(plain, pa.string()).take(coded.indices), problems


def split_loras(text: str) -> tuple[str, ...]:
    """Returns the LoRAs that a text names. Blank ones are left out."""
    return tuple(part.strip() for part in text.split(SEPARATOR) if part.strip())


def _problem(row: int, value: str, allowed: str) -> Problem:
    return Problem(row=row, column=LORA, value=value, allowed=allowed)


class LoraCheck:
    """What families make of the LoRAs that rows name: each text of a family is looked at once."""

    def __init__(self, families: Sequence[FamilyRules]) -> None:
        self._families = families
        self._found: dict[tuple[int, str], RowLoras | str] = {}

    def decide(
        self, given: pa.Array, identity: pa.Array, codes: npt.NDArray[np.int64], usable: npt.NDArray[np.bool_]
    ) -> tuple[pa.Array, Mapping[str, pa.Array], list[tuple[int, str, str, str]]]:
        """Decides distinct settings. `given`: what rows say; `identity`: as without it; `codes`: their families.

        `usable`: the settings that count. Returns the identities, the columns of `LORA_SCHEMA`, and what is wrong: index,
        column, value, what is allowed.
        """
        identities, findings = identity.to_pylist(), []
        columns: dict[str, list[str | None]] = {name: [None] * len(given) for name in LORA_SCHEMA.names}
        for at in np.flatnonzero(given.is_valid().to_numpy(zero_copy_only=False) & usable):
            text = given[int(at)].as_py()
            found = self._look(int(codes[at]), text)
            if isinstance(found, str):
                findings.append((int(at), LORA, shown(text), found))
                continue
            identities[at] = found.identity
            columns["lora"][at], columns["lora_digests"][at] = found.text, found.digests
        return (
            pa.array(identities, pa.string()),
            {name: pa.array(values, pa.string()) for name, values in columns.items()},
            findings,
        )

    def _look(self, code: int, text: str) -> RowLoras | str:
        if (code, text) not in self._found:
            self._found[code, text] = _asked(self._families[code].loras, self._families[code].name, text)
        return self._found[code, text]


def _asked(loras: Callable[[tuple[str, ...]], RowLoras] | None, family: str, text: str) -> RowLoras | str:
    if loras is None:
        return f"{family} takes no LoRA; leave it out"
    try:
        return loras(() if text == NO_LORA else split_loras(text))
    except (OSError, ValueError) as error:
        return (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
