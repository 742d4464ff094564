"""Exit codes, the errors that end a command with one of them, and names that no command can use.

CommandError            a message for the user and the exit code that goes with it
|-- UsageError          2: a flag, variable or file that says something impossible
|-- RefusedError        5: the cluster or the bucket said no
`-- BudgetError         6: the budget is spent
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from enum import IntEnum

_MOST_SHOWN = 200


class Exit(IntEnum):
    """What the process returns to the shell."""

    OK = 0
    ERROR = 1
    USAGE = 2
    CLIPS_FAILED = 3
    MANIFEST_INVALID = 4
    REFUSED = 5
    BUDGET_SPENT = 6
    NOT_AS_SIGNED = 7
    NO_MANIFEST = 8
    INTERRUPTED = 130


class CommandError(Exception):
    """Ends a command; the message says what, which value, what is allowed, what to do."""

    exit_code = Exit.ERROR


class UsageError(CommandError):
    """A flag, variable or file that says something impossible."""

    exit_code = Exit.USAGE


class RefusedError(CommandError):
    """The cluster or the bucket refused, or cannot be reached."""

    exit_code = Exit.REFUSED


class BudgetError(CommandError):
    """The run's budget is spent, so nothing is started."""

    exit_code = Exit.BUDGET_SPENT


def check_names(values: Iterable[str]) -> None:
    """Raises UsageError for a value that files and stores would not get as it was typed: see `unusable_name`."""
    for value in values:
        if why := unusable_name(value):
            raise UsageError(why)


def unusable_name(value: str, *, encoding: str | None = None) -> str | None:
    """Returns what to tell of a name that is not of the letters that Python reads names in; None for any other name.

    Python passes names to the system in the locale's encoding, Arrow and stores in UTF-8: only names of ASCII are the same
    in both. `encoding`: that of names, by default this process's.
    """
    encoding = encoding or sys.getfilesystemencoding()
    if encoding.lower().replace("-", "") != "utf8":
        if value.isascii():
            return None
        allowed = f"this locale has names in {encoding}, so only letters of ASCII are allowed"
        return f"{_as_typed(value)!r}: {allowed}; set PYTHONUTF8=1, or a locale of UTF-8 such as LC_ALL=C.UTF-8"
    if any("\udc80" <= letter <= "\udcff" for letter in value):
        return f"{value[:_MOST_SHOWN]!r}: these bytes are not UTF-8, which names must be; rename it"
    return None


def _as_typed(value: str) -> str:
    try:
        return os.fsencode(value).decode(errors="replace")[:_MOST_SHOWN]
    except UnicodeEncodeError:  # it comes from a file, so it was read right
        return value[:_MOST_SHOWN]
