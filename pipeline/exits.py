"""Exit codes, and the errors that end a command with one of them.

CommandError            a message for the user and the exit code that goes with it
|-- UsageError          2: a flag, variable or file that says something impossible
|-- RefusedError        5: the cluster or the bucket said no
`-- BudgetError         6: the budget is spent
"""

from __future__ import annotations

from enum import IntEnum


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
