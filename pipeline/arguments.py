"""The parser of the command line as all commands have it: errors in words, help with exit codes, numbers that are checked."""

from __future__ import annotations

import argparse
import difflib
import platform
from typing import Any, NoReturn

from pipeline.exits import UsageError
from pipeline.help_texts import EXITS


class Parser(argparse.ArgumentParser):
    """Raises an error with the exit code for wrong usage, so that --json can report it too."""

    def error(self, message: str) -> NoReturn:
        """Raises UsageError."""
        raise UsageError(f"{message}; see: {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses as argparse does, but raises UsageError in the command that does not know a word, not above it."""
        found, left = super().parse_known_args(args, namespace)
        flag = next((word.partition("=")[0] for word in left if word.startswith("--")), None)
        if flag is not None:
            likely = difflib.get_close_matches(flag, self._option_string_actions, n=1)
            self.error(f"{flag!r} is no flag of this command{f'; {likely[0]} is' if likely else ''}")
        if left:
            self.error(f"{left[0]!r} is one word too many")
        return found, left


class Version(argparse.Action):
    """Shows versions and ends. The program's files are read only when asked for."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> NoReturn:
        """Shows them."""
        from jobs.version import CODE, program

        print(f"pab-pipeline {program()} in {CODE}, Python {platform.python_version()}")
        parser.exit()


Commands = argparse._SubParsersAction  # the type has no public name


def command(commands: Commands[Parser], name: str, summary: str, epilog: str = "") -> Parser:
    """Adds a command. `epilog`: examples, which its help shows before the exit codes."""
    return commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=epilog + EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_json(parser: Parser) -> None:
    """Adds the flag that most commands have."""
    parser.add_argument("--json", action="store_true", help="write one JSON document to stdout and nothing else")


def megabytes(text: str) -> float:
    """Reads a size. Raises ArgumentTypeError, as the three below do."""
    return _above_zero(text, "MB", 1_000_000)


def hours(text: str) -> float:
    """Reads how long a link is to be valid."""
    # The longest time of S3's signed links is a week.
    return _above_zero(text, "hours", 168)


def minutes(text: str) -> float:
    """Reads a time."""
    return _above_zero(text, "minutes", 60 * 24 * 366)


def seconds(text: str) -> float:
    """Reads a time."""
    return _above_zero(text, "seconds", 3600 * 24 * 366)


def _above_zero(text: str, unit: str, most: float) -> float:
    number = float(text)
    # Of NaN every comparison is false.
    if not 0 < number <= most:
        raise argparse.ArgumentTypeError(f"{text}, needs more than 0 {unit}, and {most:,} at most")
    return number
