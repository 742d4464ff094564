"""What an export says of a clip: columns under names that are free, values that JSON and CSV can hold."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from typing import Any

Row = Mapping[str, Any]
_INNER = ("video_url", "outcome", "error", "prompt")
"""Columns of the index that do not go into a data set under their names."""
_WORDS = "alarms"


def column_names(columns: Iterable[str], is_taken: Callable[[str], bool]) -> dict[str, str]:
    """Returns under which name each column of the index goes into a data set; its inner ones are left out.

    `is_taken`: whether the form itself has a column of a name, or its reader would take it for one. Such a column gets
    `_in_manifest` behind its name, once or more, as columns of the index do.
    """
    return _free_names([name for name in columns if name not in _INNER], is_taken)


def with_free_keys(value: Any, is_taken: Callable[[str], bool]) -> Any:
    """Returns a value that `plain` has made with such names inside of its objects too."""
    if isinstance(value, dict):
        free = _free_names(value, is_taken)
        return {free[name]: with_free_keys(each, is_taken) for name, each in value.items()}
    return [with_free_keys(each, is_taken) for each in value] if isinstance(value, list) else value


def _free_names(names: Collection[str], is_taken: Callable[[str], bool]) -> dict[str, str]:
    found = {}
    for name in names:
        free = name
        while is_taken(free) or (free != name and free in names):
            free += "_in_manifest"
        found[name] = free
    return found


def facts_of(row: Row, names: Mapping[str, str]) -> dict[str, Any]:
    """Returns what a data set says of a clip: its settings, all other columns of the manifest, and quality, for JSON.

    `names`: those of `column_names`. What a clip has no value of is left out.
    """
    return {free: plain(row[name]) for name, free in names.items() if row[name] is not None}


def cells_of(row: Row, names: Mapping[str, str]) -> dict[str, Any]:
    """Returns the same as `facts_of` as cells of a CSV file. Empty: there is no value."""
    return {free: " ".join(row[name] or ()) if name == _WORDS else _cell(row[name]) for name, free in names.items()}


def json_line(value: object) -> bytes:
    """Returns a value that `plain` has made as JSON in one line."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def plain(value: object) -> Any:
    """Returns a value of a Parquet column as JSON knows it.

    NaN and infinity become None, bytes base64, dates and times ISO 8601, durations seconds, other values their text.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case bytes():
            return base64.b64encode(value).decode()
        case Mapping():
            return {str(name): plain(each) for name, each in value.items()}
        case Sequence():
            return [plain(each) for each in value]
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
    return str(value)


def _cell(value: object) -> object:
    known = plain(value)
    return json_line(known).decode() if isinstance(known, bool | list | dict) else known
