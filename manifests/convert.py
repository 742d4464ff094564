"""Cells of CSV and JSONL lines: which Arrow type a column gets, what a cell becomes, and what cannot be converted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal

import pyarrow as pa

from manifests.errors import Problem, shown
from manifests.references import split_references
from manifests.schema import FLOAT_COLUMNS, INTEGER_COLUMNS, LIST_COLUMNS, STRING_COLUMNS

Cell = object
"""A string (CSV, text) or any JSON value; None where there is none."""
Cells = Mapping[str, Cell]

_ACTION = "fix the line"


def cell_problems(line: int, cells: Cells) -> Iterator[Problem]:
    """Yields what is wrong with the cells of one line: types and an empty prompt."""
    prompt = cells.get("prompt")
    if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
        allowed = "a prompt that is not empty is needed"
        yield Problem(line=line, column="prompt", value=shown(prompt), allowed=allowed, action=_ACTION)
    for column, value in cells.items():
        needed = None if value is None else refused(column, value)
        if needed is not None:
            yield Problem(line=line, column=column, value=shown(value), allowed=needed, action=_ACTION)


def column_type(column: str, value: Cell, before: pa.DataType | None) -> pa.DataType:
    """Returns the type of a column that was `before` (None: new) when `value` is added to it.

    Ours are fixed. Extra ones keep bool, int64, float64 or string; values of several kinds, objects and lists become
    strings of JSON text.
    """
    if column in STRING_COLUMNS:
        return pa.string()
    if column in INTEGER_COLUMNS:
        return pa.int64()
    if column in FLOAT_COLUMNS:
        return pa.float64()
    if column in LIST_COLUMNS:
        return pa.list_(pa.string())
    found = _extra_type(value)
    if before is None or before == found or pa.types.is_null(before):
        return found
    if pa.types.is_null(found):
        return before
    return pa.float64() if {before, found} == {pa.int64(), pa.float64()} else pa.string()


def converted(value: Cell, field: pa.Field) -> str | int | float | bool | list[str] | None:
    """Returns a cell that has no problem as a value of its column's type."""
    if value is None:
        return None
    if field.name in INTEGER_COLUMNS:
        number = whole_number(value)
        assert number is not None, f"{field} got {value!r}"
        return number
    if field.name in LIST_COLUMNS:
        return list(split_references(value))  # type: ignore[arg-type]
    if field.name in FLOAT_COLUMNS or pa.types.is_floating(field.type):
        return float(value)  # type: ignore[arg-type]
    if pa.types.is_string(field.type):
        return value if isinstance(value, str) else _as_text(value)
    assert isinstance(value, bool | int), f"{field} got {value!r}"
    return value


def refused(column: str, value: Cell) -> str | None:
    """Says what is needed where a value cannot be one of a column; None where it can, and for columns that are not ours."""
    if column in STRING_COLUMNS:
        # Ids are numbers in many files.
        a_number = column == "clip_id" and isinstance(value, int) and not isinstance(value, bool)
        return None if isinstance(value, str) or a_number else "a string is needed"
    if column in INTEGER_COLUMNS:
        return None if whole_number(value) is not None else "an integer within int64 is needed"
    if column in FLOAT_COLUMNS:
        return None if _is_finite(value) else "a finite number is needed"
    if column in LIST_COLUMNS:
        listed = isinstance(value, list) and all(isinstance(part, str) for part in value)
        return None if listed or isinstance(value, str) else "a string or a list of strings is needed"
    return None


def whole_number(value: Cell) -> int | None:
    """Returns a number, or text of one, as an integer; None if it is none within int64."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    try:
        # Text is tried as an integer first: a large seed would lose digits as a float.
        number = (
            int(value)
            if isinstance(value, int) or (isinstance(value, str) and _is_digits(value)) or _is_whole(value)
            else float(value)
        )
    except ValueError:
        return None
    # NaN fails the comparison, infinities and everything beyond int64 do, too.
    return int(number) if -(2**63) <= number < 2**63 and number == int(number) else None


def _is_whole(value: Cell) -> bool:
    # As floats, numbers beyond 2**53 would become other ones.
    return isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value()


def _as_text(value: Cell) -> str:
    if isinstance(value, date | time | timedelta):
        return value.isoformat() if isinstance(value, date | time) else str(value)
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def _is_digits(text: str) -> bool:
    plain = text.strip()
    return plain.isascii() and plain.lstrip("+-").isdigit()


def _is_finite(value: Cell) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return False
    try:
        return math.isfinite(float(value))
    except (ValueError, OverflowError):
        return False


def _extra_type(value: Cell) -> pa.DataType:
    if value is None:
        return pa.null()
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64() if -(2**63) <= value < 2**63 else pa.string()
    return pa.float64() if isinstance(value, float | Decimal) else pa.string()
