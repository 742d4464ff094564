"""How a field of the settings tree states a setting: with all that its flag, variable, file key and help need."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import get_type_hints


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Describes a field of the settings tree, beside its name, type and default: `Annotated[int, Setting(...)]`.

    `pipeline.run.options` makes the flag, the environment variable, the key of a --config file and the line in --help of it.
    `help`: for a bool, it says what giving the flag does. `asked`: the default as users write it, if it is not a value of the
    field ("auto"). `name`: if it differs from the field's name. `kind`: the type that users give, if it differs from the
    field's; list is text that may be repeated. `choices`: the allowed texts. `low`, `high`: bounds of a whole number. `read`:
    turns an allowed text into the field's value; its ValueError says what is needed. `group`: the part of the tree under
    whose heading --help shows it, if not its own. `commands`: the commands besides `submit` that take the flag. `is_secret`:
    messages do not quote the value.
    """

    help: str
    asked: str | None = None
    name: str | None = None
    kind: type | None = None
    choices: tuple[str, ...] = ()
    low: int = 1
    high: int | None = None
    read: Callable[[str], object] | None = None
    metavar: str | None = None
    group: str | None = None
    commands: tuple[str, ...] = ()
    is_secret: bool = False

    def check_number(self, number: int) -> None:
        """Raises ValueError, which says what is needed, for a number out of bounds."""
        if number < self.low or (self.high is not None and number > self.high):
            raise ValueError(self.needed_number)

    @property
    def needed_number(self) -> str:
        """The end of an error message: which whole numbers are allowed."""
        bounds = f"of {self.low} or more" if self.high is None else f"from {self.low} to {self.high}"
        return f"needs a whole number {bounds}"


def settings_in(part: type) -> dict[str, tuple[object, Setting]]:
    """Returns field name -> (type, `Setting`) for the fields that have a `Setting`. `part`: a dataclass of the tree."""
    hints = get_type_hints(part, include_extras=True)
    return {
        each.name: (hints[each.name].__origin__, said)
        for each in fields(part)
        for said in getattr(hints[each.name], "__metadata__", ())
        if isinstance(said, Setting)
    }


def number_reader(low: float, high: float) -> Callable[[str], float]:
    """Returns what reads a number within these bounds, for `Setting.read`."""

    def read(text: str) -> float:
        """Reads a number. Raises ValueError, which says what is needed."""
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise ValueError(f"needs a number from {low:g} to {high:g}")
        return number

    return read
