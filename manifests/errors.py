"""What is wrong with a manifest: every problem as a value, and the one error that carries them all."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TextIO

from manifests.printable import one_line

SHOWN_PROBLEMS, SHOWN_CHARS = 20, 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong in one row (or line), or in a whole column when `row` is None.

    `row` counts from 0 in a Parquet manifest; `line` counts from 1 in a text file. `value` is the value found, as it is
    shown; `allowed` says what is; `action` what to do. `file`: where there are several.
    """

    row: int | None = None
    line: int | None = None
    file: str | None = None
    column: str | None = None
    value: str | None = None
    allowed: str
    action: str = "fix the manifest"

    def of_row(self, row: int) -> Problem:
        """Returns the same in a row."""
        return replace(self, row=row)

    def __str__(self) -> str:
        """Says it in one line: `row 17: num_frames=80, wan needs 4n+1 (77, 81, 85); fix the manifest`."""
        found = [part for part in (self.column, self.value) if part is not None]
        numbered = ((kind, at) for kind, at in (("row", self.row), ("line", self.line)) if at is not None)
        where = "".join([f"{self.file}: " if self.file else "", *(f"{kind} {at}: " for kind, at in numbered)])
        return one_line(f"{where}{'='.join(found)}{', ' if found else ''}{self.allowed}; {self.action}")


class ManifestError(ValueError):
    """A manifest that cannot be used: the message shows the first problems, `errors_path` (if any) lists all of them."""

    def __init__(
        self,
        name: str,
        problems: Iterable[Problem],
        *,
        num_problems: int | None = None,
        errors_path: Path | None = None,
        note: str | None = None,
    ) -> None:
        self.name = name
        self.problems = tuple(problems)
        self.num_problems = len(self.problems) if num_problems is None else num_problems
        self.errors_path = errors_path
        self.note = note
        super().__init__(self._message())

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles by content: exceptions with keyword arguments do not by themselves."""
        return _rebuilt, (self.name, self.problems, self.num_problems, self.errors_path, self.note)

    def _message(self) -> str:
        if self.num_problems == 1:
            lines = [f"{one_line(self.name)}: {self.problems[0]}"]
        else:
            counts = ", rows count from 0" if any(problem.row is not None for problem in self.problems) else ""
            lines = [f"{one_line(self.name)}: {self.num_problems} problems{counts}"]
            lines += [f"  {problem}" for problem in self.problems[:SHOWN_PROBLEMS]]
        if self.num_problems > SHOWN_PROBLEMS:
            lines.append(f"  ... and {self.num_problems - SHOWN_PROBLEMS} more")
        if self.errors_path is not None:
            lines.append(f"all of them: {self.errors_path}")
        if self.note is not None:
            lines.append(self.note)
        return "\n".join(lines)


def _rebuilt(
    name: str, problems: tuple[Problem, ...], num_problems: int, errors_path: Path | None, note: str | None
) -> ManifestError:
    return ManifestError(name, problems, num_problems=num_problems, errors_path=errors_path, note=note)


class ProblemLog:
    """Collects problems with bounded memory: the first are kept, all are written to `path` as JSON lines.

    The file is created by the first problem, so a manifest without one leaves none. With `path` None nothing is
    written.
    """

    def __init__(self, name: str, path: Path | None) -> None:
        self._name = name
        self._path = path
        self._note: str | None = None
        self._file: TextIO | None = None
        self._first: list[Problem] = []
        self._num_problems = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def __bool__(self) -> bool:
        return self._num_problems > 0

    def extend(self, problems: Iterable[Problem]) -> None:
        """Adds `problems` in their order."""
        for problem in problems:
            self._num_problems += 1
            if len(self._first) < SHOWN_PROBLEMS:
                self._first.append(problem)
            self._write(problem)

    def raise_if_any(self) -> None:
        """Raises ManifestError with everything collected, or returns when nothing was."""
        if not self._num_problems:
            return
        self._close()
        raise ManifestError(
            self._name, self._first, num_problems=self._num_problems, errors_path=self._path, note=self._note
        )

    def _write(self, problem: Problem) -> None:
        if self._path is None:
            return
        try:
            if self._file is None:
                self._file = self._path.open("w", encoding="utf-8")
            # Written out by hand: there may be millions, and `asdict` copies every value.
            values = {
                "file": problem.file,
                "row": problem.row,
                "line": problem.line,
                "column": problem.column,
                "value": problem.value,
                "allowed": problem.allowed,
                "action": problem.action,
            }
            known = {key: value for key, value in values.items() if value is not None}
            line = json.dumps(known, ensure_ascii=False)
            # Whoever looks at the file with `cat` is not to be shown control characters.
            self._file.write((line if line.isprintable() else json.dumps(known)) + "\n")
        except OSError as error:
            self._give_up(error)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        try:
            file.close()  # writes what is buffered
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        # The problems themselves matter more than their file: the message says that it is missing.
        if self._path is not None:
            self._note = f"the list of all problems could not be written to {self._path}: {error}"
        self._path = None


def cut(text: str, most: int) -> str:
    """Returns the text, cut at `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def shown(value: object) -> str:
    """Shows a value in a message: strings quoted and cut at `SHOWN_CHARS` characters."""
    if isinstance(value, str):
        value = cut(value, SHOWN_CHARS)
    return "null" if value is None else repr(value)
