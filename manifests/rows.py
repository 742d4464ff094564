"""One batch of a user's manifest with its columns in our types, and what is wrong with single values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.digest import content_hashes, hex_strings, row_heads
from manifests.distinct import Indices, distinct_rows, rows_of
from manifests.errors import SHOWN_CHARS, Problem, shown
from manifests.limits import SETTING_COLUMNS, SIZE, SIZE_COLUMNS, Finding, Limits
from manifests.loops import RowLoops, read_row_loops
from manifests.loras import LORA, read_row_loras
from manifests.references import RowReferences, read_row_references
from manifests.sampling import SAMPLING_COLUMNS
from manifests.schema import (
    FLOAT_COLUMNS,
    INTEGER_COLUMNS,
    STRING_COLUMNS,
    BadRow,
    as_floats,
    as_integers,
    as_strings,
    has_references,
)
from manifests.suffixes import SUFFIX
from manifests.unique import Repetitions

_CLIP_ID = r"\A[A-Za-z0-9_]([A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?\z"
_CLIP_ID_WORDS = "1 to 128 of the characters A-Z a-z 0-9 . _ - are needed, the first no . or -, the last no ."
"""Files are named by it: a hidden one is not listed, one that begins with - is an option to many programs."""
_RESERVED = r"(?i)\A(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|\z)"
_RESERVED_WORDS = "Windows keeps this name for a device; add a letter"
_PROMPT_WORDS = "a prompt that is not empty is needed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A batch by column, null where a row has no value or a broken one, and its distinct settings.

    `distinct` holds the first row of each combination of the SETTING_COLUMNS, `codes` the combination of each row.
    `problems` are those of single values; what the families allow is checked by `Limits`.
    """

    columns: Mapping[str, pa.Array]
    distinct: Indices
    codes: Indices
    first_row: int
    problems: tuple[Problem, ...]
    loops: RowLoops
    references: RowReferences | None
    """Of the rows that name some; None in a manifest without the columns."""

    def __len__(self) -> int:
        return len(self.codes)

    def settings(self) -> dict[str, pa.Array]:
        """Returns the distinct settings as given: SETTING_COLUMNS, one row per combination."""
        at = pa.array(self.distinct)
        return {name: self.columns[name].take(at) for name in SETTING_COLUMNS}

    def of_findings(self, findings: list[Finding]) -> Iterator[Problem]:
        """Yields a problem for every row whose settings have a finding."""
        rows = rows_of(self.codes, [index for index, *_ in findings]) if findings else []
        # A default stands in for a broken value: what follows from that default says nothing about the row.
        broken = {problem.row for problem in self.problems if problem.column in SIZE_COLUMNS}
        for (_, column, value, allowed), found in zip(findings, rows, strict=True):
            for at in found:
                row = self.first_row + int(at)
                if column != SIZE or row not in broken:
                    yield Problem(row=row, column=column, value=value, allowed=allowed)


def read_rows(batch: pa.RecordBatch, first_row: int, limits: Limits) -> Rows:
    """Brings a batch to our types and checks single values. `first_row`: the row of the batch's first in the file."""
    columns: dict[str, pa.Array] = {}
    problems: list[Problem] = []
    for names, convert, kind, allowed in (
        (STRING_COLUMNS, as_strings, pa.string(), "valid UTF-8 is needed"),
        (INTEGER_COLUMNS, as_integers, pa.int64(), "a whole number within int64 is needed"),
        (FLOAT_COLUMNS, as_floats, pa.float64(), "a finite number is needed"),
    ):
        for name in names:
            if name not in batch.schema.names:
                columns[name] = pa.nulls(len(batch), kind)
                continue
            columns[name], bad = convert(batch.column(name))
            problems += _problems(bad, first_row, name, allowed)
    columns[LORA] = pa.nulls(len(batch), pa.string())
    if LORA in batch.schema.names:
        columns[LORA], bad_loras = read_row_loras(batch.column(LORA), first_row)
        problems += bad_loras
    problems += _long_prompts(columns, first_row, limits)
    problems += _unread_suffixes(columns["prompt"], first_row)
    broken = {problem.row for problem in problems if problem.column == "prompt"}
    problems += [problem for problem in _bad_prompts(columns, first_row) if problem.row not in broken]
    problems += _bad_clip_ids(columns["clip_id"], first_row)
    columns["prompt"] = pc.fill_null(columns["prompt"], "")
    references = None
    if has_references(batch.schema):
        references, unnamed = read_row_references(batch, columns, first_row)
        problems += unnamed
    distinct, codes = distinct_rows([columns[name] for name in SETTING_COLUMNS])
    return Rows(
        columns=columns,
        distinct=distinct,
        codes=codes,
        first_row=first_row,
        problems=tuple(problems),
        loops=read_row_loops(columns),
        references=references,
    )


def clip_ids(rows: Rows, repetitions: Repetitions) -> pa.Array:
    """Returns the rows' clip ids: as given, else 16 hex digits of the content, `-k` added for its k-th repetition.

    `repetitions` must have seen the batches before, in order.
    """
    given = rows.columns["clip_id"]
    missing = given.is_null()
    if given.null_count == 0:
        return given
    settings = rows.settings()
    sizes = [settings[name] for name in SIZE_COLUMNS]
    broadcast = _with_choices(settings)
    heads = row_heads([settings["model"], broadcast], sizes, settings["guidance_scale"])
    parts = [heads.take(pa.array(rows.codes)), *(rows.columns[name] for name in ("seed", "negative_prompt", "prompt"))]
    hashes = content_hashes(*parts)
    rows.loops.add_to_ids(hashes)
    if rows.references is not None:
        rows.references.add_to_ids(hashes)
    if given.null_count < len(given):
        hashes = hashes[missing.to_numpy(zero_copy_only=False)]
    ids = hex_strings(hashes)
    earlier = repetitions.count(hashes.view(np.uint64).reshape(-1))
    if earlier.any():
        counts = pa.array(earlier)
        suffixed = pc.binary_join_element_wise(ids, counts.cast(pa.string()), "-")
        ids = pc.if_else(pc.greater(counts, 0), suffixed, ids)
    return ids if given.null_count == len(given) else pc.replace_with_mask(given, missing, ids)


def _with_choices(settings: Mapping[str, pa.Array]) -> pa.Array:
    """Returns the broadcasts, with what the settings say of sampling and LoRAs behind them where they say anything."""
    broadcast = settings["broadcast"]
    said = [name for name in (*SAMPLING_COLUMNS, LORA) if settings[name].null_count < len(settings[name])]
    for name in said:
        text = pc.binary_join_element_wise(pc.fill_null(broadcast, "-"), name, settings[name].cast(pa.string()), " ")
        broadcast = pc.coalesce(text, broadcast)
    return broadcast


def _problems(bad: list[BadRow], first_row: int, column: str, allowed: str) -> list[Problem]:
    return [Problem(row=first_row + at, column=column, value=value, allowed=allowed) for at, value in bad]


def _where(mask: pa.Array) -> list[int]:
    if not pc.any(mask).as_py():
        return []
    found: list[int] = np.flatnonzero(pc.fill_null(mask, fill_value=False).to_numpy(zero_copy_only=False)).tolist()
    return found


def _bad_prompts(columns: Mapping[str, pa.Array], first_row: int) -> list[Problem]:
    prompts = columns["prompt"]
    empty = pc.fill_null(pc.or_(pc.equal(pc.binary_length(prompts), 0), pc.utf8_is_space(prompts)), fill_value=True)
    bad = [(at, _shown(prompts, at)) for at in _where(empty)]
    return _problems(bad, first_row, "prompt", _PROMPT_WORDS)


def _unread_suffixes(prompts: pa.Array, first_row: int) -> list[Problem]:
    """Refuses prompts that end with Open-Sora's JSON of references, which a model would be given as words."""
    found = _where(pc.match_substring_regex(prompts, SUFFIX))
    return [
        Problem(
            row=first_row + at,
            column="prompt",
            value=_shown(prompts, at),
            allowed="it ends with JSON of references, which is no text of a prompt",
            action="put it into columns references and mask_strategy, as `manifest build` does for a text file",
        )
        for at in found
    ]


def _bad_clip_ids(ids: pa.Array, first_row: int) -> list[Problem]:
    if ids.null_count == len(ids):
        return []
    problems = []
    for mask, allowed in (
        (pc.invert(pc.match_substring_regex(ids, _CLIP_ID)), _CLIP_ID_WORDS),
        (pc.match_substring_regex(ids, _RESERVED), _RESERVED_WORDS),
    ):
        problems += _problems([(at, _shown(ids, at)) for at in _where(mask)], first_row, "clip_id", allowed)
    return problems


def _shown(texts: pa.Array, at: int) -> str:
    """Shows a value of a column that may be of any length."""
    return shown(pc.utf8_slice_codeunits(texts[at], 0, SHOWN_CHARS + 1).as_py())


def _long_prompts(columns: dict[str, pa.Array], first_row: int, limits: Limits) -> list[Problem]:
    """Returns the problems of prompts that are too long, and takes those prompts out: no work is for them."""
    problems = []
    for name in ("prompt", "negative_prompt"):
        # Bytes are at least as many as characters, and cheap to count: only the long ones are counted exactly.
        long = _where(pc.greater(pc.binary_length(columns[name]), limits.min_prompt_chars))
        if not long:
            continue
        texts = columns[name].take(pa.array(long))
        lengths = pc.utf8_length(texts).to_numpy()
        most = limits.max_prompt_chars(columns["model"].take(pa.array(long)))
        bad = np.flatnonzero(lengths > most)
        for i in bad:
            allowed = f"{lengths[i]} characters, at most {most[i]} are allowed (max_prompt_chars)"
            problems.append(Problem(row=first_row + long[i], column=name, value=_shown(texts, int(i)), allowed=allowed))
        if len(bad):
            mask = np.zeros(len(columns[name]), bool)
            mask[np.array(long)[bad]] = True
            columns[name] = pc.if_else(pa.array(mask), pa.scalar(None, pa.string()), columns[name])
    return problems
