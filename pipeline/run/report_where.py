"""Conditions on rows of reports/index.parquet, such as `psnr < 25 and outcome = rendered`."""

from __future__ import annotations

import io
import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.exits import UsageError

EXAMPLE = '--where "psnr < 25", --where "alarms has flickering and height >= 720"'
SHORT_NAMES = {"psnr": "psnr_db"}
_ORDERED: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_EQUAL = {"=": True, "==": True, "!=": False}
_CONDITION = re.compile(r"\s*([A-Za-z_]\w*)\s*(<=|>=|==|!=|<|>|=|\bhas\b)\s*(\"[^\"]*\"|'[^']*'|\S+)\s*")
_AND = re.compile(r"\s+and\s+", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One column compared with one value. A row without a value in that column does not match."""

    column: str
    sign: str
    value: str

    def holds(self, found: object) -> bool:
        """Whether a value of the column fulfils it."""
        if found is None:
            return False
        if self.sign == "has":
            return isinstance(found, list | tuple) and self.value in found
        if self.sign in _EQUAL:
            same = float(self.value) == found if isinstance(found, int | float) else self.value == str(found)
            return same is _EQUAL[self.sign]
        return isinstance(found, int | float) and _ORDERED[self.sign](found, float(self.value))


def parse_where(text: str, schema: pa.Schema) -> list[Condition]:
    """Reads conditions that are joined by `and`. `schema`: of the index. Raises UsageError saying what is allowed."""
    conditions = []
    for part in _AND.split(text):
        found = _CONDITION.fullmatch(part)
        if found is None:
            raise UsageError(f"--where {text!r}: {part!r} is no condition, needs COLUMN SIGN VALUE such as {EXAMPLE}")
        name, sign, value = SHORT_NAMES.get(found[1], found[1]), found[2], found[3]
        value = value[1:-1] if value[0] in "\"'" and len(value) > 1 else value
        if name not in schema.names:
            raise UsageError(f"--where {text!r}: no column {name!r}, allowed: {', '.join(schema.names)}")
        _check_kind(text, name, sign, value, schema.field(name).type)
        conditions.append(Condition(column=name, sign=sign, value=value))
    return conditions


def _check_kind(text: str, name: str, sign: str, value: str, kind: pa.DataType) -> None:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    is_number = pa.types.is_floating(kind) or pa.types.is_integer(kind)
    if (sign == "has") is not is_list:
        needs = "holds several texts, so ask with has" if is_list else "holds one value, so has does not fit"
        raise UsageError(f"--where {text!r}: column {name} {needs}")
    if sign in _ORDERED and not is_number:
        raise UsageError(f"--where {text!r}: column {name} holds no numbers, allowed: = and !=")
    if is_number:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        # Nothing is equal to NaN, or above or below it.
        if math.isnan(number):
            raise UsageError(f"--where {text!r}: {value!r}, column {name} needs a number")


def matching(rows: Iterable[Mapping[str, object]], conditions: Sequence[Condition]) -> list[Mapping[str, object]]:
    """Returns the rows that fulfil all conditions."""
    return [row for row in rows if all(each.holds(row[each.column]) for each in conditions)]


def find_where(index: bytes, text: str, recorded: Collection[str]) -> tuple[set[str], dict[str, int]]:
    """Returns the keys of recorded clips that fulfil the conditions, and by column of how many recorded clips it is known.

    `index`: the bytes of reports/index.parquet, which may be older than what is recorded. Raises UsageError.
    """
    file = pq.ParquetFile(io.BytesIO(index))
    conditions = parse_where(text, file.schema_arrow)
    asked = list(dict.fromkeys(each.column for each in conditions))
    known, keys = dict.fromkeys(asked, 0), set()
    for batch in file.iter_batches(columns=list(dict.fromkeys(["clip_id", "digest", *asked]))):
        rows = [row for row in batch.to_pylist() if f"{row['clip_id']}.{row['digest']}" in recorded]
        for name in asked:
            known[name] += sum(row[name] is not None for row in rows)
        keys |= {f"{row['clip_id']}.{row['digest']}" for row in matching(rows, conditions)}
    return keys, known
