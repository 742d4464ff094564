"""What a user adds to the rows of a source: settings for all, sweeps, templates, and which rows are taken."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from manifests.convert import Cells, refused, whole_number
from manifests.errors import shown
from manifests.schema import ROW_COLUMNS

SWEPT = tuple(name for name in ROW_COLUMNS if name not in ("prompt", "clip_id"))
"""The columns that a sweep may be over."""
MOST_CLIPS_OF_A_ROW = 10_000
_MOST_ID_CHARS = 128
_PLAIN_CHARS, _CUT_CHARS = 48, 24
"""Of a value in a clip id: up to so many stand as they are; of a longer one so many, and a digest."""

_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_LOOP = re.compile(r"(\|\d+\|)")
_NO_ID = re.compile(r"[^A-Za-z0-9._-]+")
_WORDS = (
    ("aesthetic score:", "aesthetic_score"),
    ("motion score:", "motion_score"),
    ("camera motion:", "camera_motion"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """What is added to rows. Values are text as the user gives it, or numbers.

    `defaults`: for rows that say nothing in a column. `constants`: in every row, whatever it says. `sweeps`: for each row a
    clip with every combination of these values. `seeds`: clips of each row, with seeds one after another. `limit`: the first
    rows; `sample`: so many rows by chance, the same ones for the same `sample_seed`. `template`: text in which `{prompt}`
    and names of other columns in braces are replaced. The scores and `camera_motion` end each prompt, in the words with
    which Open-Sora was trained.
    """

    defaults: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)
    sweeps: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seeds: int = 1
    limit: int | None = None
    sample: int | None = None
    sample_seed: int = 0
    template: str | None = None
    aesthetic_score: str | None = None
    motion_score: str | None = None
    camera_motion: str | None = None

    def __post_init__(self) -> None:
        given = [*self.defaults.items(), *self.constants.items()]
        given += [(name, value) for name, values in self.sweeps.items() for value in values]
        for name, value in given:
            if (problem := refused(name, value)) is not None:
                raise ValueError(f"{name}={shown(value)}, {problem}")
        for name in self.sweeps:
            if name not in SWEPT:
                raise ValueError(f"{name!r} cannot be swept, allowed: {', '.join(SWEPT)}")
        if self.seeds > 1 and "seed" in self.sweeps:
            raise ValueError("seeds are counted and swept; leave out one of the two")
        if self.limit is not None and self.sample is not None:
            raise ValueError("either the first rows or a sample of rows; leave out one of the two")
        if self.clips_of_a_row > MOST_CLIPS_OF_A_ROW:
            allowed = f"at most {MOST_CLIPS_OF_A_ROW:,} are allowed"
            raise ValueError(f"{self.clips_of_a_row:,} clips of each row, {allowed}; sweep over fewer values")
        if self.template is not None and "prompt" not in self._fields():
            raise ValueError(f"template {shown(self.template)} needs {{prompt}} where the row's prompt goes")

    @property
    def clips_of_a_row(self) -> int:
        """How many clips each row becomes."""
        count = self.seeds
        for values in self.sweeps.values():
            count *= len(values)
        return count

    def taken(self, num_rows: int) -> frozenset[int] | None:
        """Returns the places of the rows that a sample takes; None for all."""
        if self.sample is None or self.sample >= num_rows:
            return None
        return frozenset(random.Random(self.sample_seed).sample(range(num_rows), self.sample))

    def columns(self) -> tuple[str, ...]:
        """Returns the columns that rows have by it."""
        return (*self.defaults, *self.constants, *self.sweeps, *(["seed"] if self.seeds > 1 else []))

    def shaped(self, row: Cells) -> Iterator[Cells]:
        """Yields the clips of a row: prompts in their template, then all combinations of settings, seeds innermost.

        Raises ValueError for a row that the template, or the count of seeds, does not fit, or whose id gets too long.
        """
        if self._adds_nothing:
            yield row
            return
        filled = {name: value for name, value in self.defaults.items() if row.get(name) is None}
        whole = {**row, **filled, **self.constants}
        whole["prompt"] = self._prompt(whole)
        if self.clips_of_a_row == 1:
            yield {**whole, **{name: values[0] for name, values in self.sweeps.items()}}
            return
        first_seed = _first_seed(whole.get("seed"), self.seeds) if self.seeds > 1 else 0
        given = None if whole.get("clip_id") is None else str(whole["clip_id"])
        parts = {} if given is None else {name: _id_parts(values) for name, values in self.sweeps.items()}
        if given is not None:
            longest = {name: max(texts.values(), key=len) for name, texts in parts.items()}
            if self.seeds > 1:
                longest["seed"] = max(map(str, (first_seed, first_seed + self.seeds - 1)), key=len)
            _check_length(given, _clip_id(given, longest))
        for values in itertools.product(*self.sweeps.values()):
            for seed in range(self.seeds):
                said = dict(zip(self.sweeps, values, strict=True))
                if self.seeds > 1:
                    said["seed"] = str(first_seed + seed)
                clip = {**whole, **said}
                if given is not None:
                    shown_by = {name: parts[name][value] if name in parts else value for name, value in said.items()}
                    clip["clip_id"] = _clip_id(given, shown_by)
                yield clip

    @property
    def _adds_nothing(self) -> bool:
        words = (self.template, self.aesthetic_score, self.motion_score, self.camera_motion)
        return self.seeds == 1 and not (self.defaults or self.constants or self.sweeps or any(words))

    def _fields(self) -> list[str]:
        return [name for name in _FIELD.findall(self.template or "") if name]

    def _prompt(self, row: Cells) -> object:
        prompt = row.get("prompt")
        if not isinstance(prompt, str):
            return prompt
        # Texts of a prompt for several loops are prompts of their own.
        parts = _LOOP.split(prompt)
        return "".join(
            part if _LOOP.fullmatch(part) or not part.strip() else _spaced(part, self._one_prompt(part.strip(), row))
            for part in parts
        )  # fmt: skip

    def _one_prompt(self, prompt: str, row: Cells) -> str:
        if self.template is not None:
            prompt = _FIELD.sub(lambda found: _field(found, {**row, "prompt": prompt}), self.template)
        for words, name in _WORDS:
            value = getattr(self, name)
            if value is not None and words not in prompt:
                prompt += f" {words} {value}."
        return prompt


def _field(found: re.Match[str], row: Cells) -> str:
    if found[1] is None:
        return found[0][0]  # a brace that is written twice
    if found[1] not in row:
        names = ", ".join(shown(name) for name in list(row)[:20])
        raise ValueError(f"the template names {{{found[1][:40]}}}, the row has {names}")
    value = row[found[1]]
    return "" if value is None else str(value)


def _spaced(part: str, prompt: str) -> str:
    return f"{part[: len(part) - len(part.lstrip())]}{prompt}{part[len(part.rstrip()) :]}"


def _first_seed(value: object, seeds: int) -> int:
    """Returns the seed to count on from. Raises ValueError for what is none, and if the last of so many is none."""
    first = 0 if value is None else whole_number(value)
    if first is None:
        raise ValueError(f"seed={shown(value)}: an integer within int64 is needed to count on from")
    if first + seeds > 2**63:
        raise ValueError(f"seed={first}: {seeds:,} seeds counted on from it go beyond int64; give a smaller one")
    return first


def _id_parts(values: Sequence[str]) -> dict[str, str]:
    """Returns what each value of a sweep is called in clip ids: differently from each other, also by capitals alone."""
    plain = {value: _NO_ID.sub("_", value) for value in values}
    alike = Counter(text.lower() for text in plain.values())
    return {
        value: text
        if alike[text.lower()] == 1 and len(text) <= _PLAIN_CHARS and not text.endswith(".")
        else f"{text[:_CUT_CHARS]}_{sha256(value.encode()).hexdigest()[:8]}"
        for value, text in plain.items()
    }


def _clip_id(given: str, parts: Mapping[str, str]) -> str:
    return "-".join([given, *(f"{name}{text}" for name, text in parts.items())])


def _check_length(given: str, longest: str) -> None:
    if len(longest) > _MOST_ID_CHARS:
        raise ValueError(
            f"clip_id={shown(given)}: gets up to {len(longest)} characters with the values of its clips at its end, at most "
            f"{_MOST_ID_CHARS} are allowed; give a shorter one, or leave clip ids out"
        )


def read_settings(texts: Sequence[str]) -> dict[str, str]:
    """Reads `NAME=VALUE` texts. Raises ValueError for one that is none, or given twice."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"{shown(text)}, needs NAME=VALUE")
        if name.strip() in found:
            raise ValueError(f"{name.strip()!r} is given more than once")
        found[name.strip()] = value
    return found


def read_sweeps(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Reads `NAME=A,B,C` texts. Raises ValueError for one that is none, or has a value twice or an empty one."""
    found = {}
    for name, value in read_settings(texts).items():
        values = tuple(part.strip() for part in value.split(","))
        if not all(values) or len(set(values)) < len(values):
            raise ValueError(f"{shown(f'{name}={value}')}, needs NAME=A,B,C with different values")
        found[name] = values
    return found
