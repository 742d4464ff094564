"""Flags, variables and keys of --config files, all made from the settings tree, which states each setting once."""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin, get_type_hints

from jobs.setting import Setting, settings_in
from pipeline.exits import UsageError
from pipeline.run.environment import PREFIX
from pipeline.run.settings import RunSettings

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
GROUPS = {"render": "rendering", "machines": "machines"}
"""Part of the tree -> its heading in --help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One setting of the tree, as users give it.

    `kind`: str, int, bool, list for text that may be repeated (a table in a file gives `KEY=VALUE`), or dict for `KEY=VALUE`
    pairs. The flag of a bool sets the opposite of its default, such as `--no-dask`.
    """

    name: str
    kind: type
    default: str | int | bool | None
    setting: Setting
    group: str

    @property
    def flag(self) -> str:
        """The flag that sets it."""
        return f"--{'no-' if self.default is True else ''}{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return PREFIX + self.name.upper()


def options_of(tree: type, group: str = "") -> tuple[Option, ...]:
    """Returns the settings of a tree (a dataclass and the dataclasses in its fields), in the order of the fields."""
    said, hints = settings_in(tree), get_type_hints(tree)
    found: list[Option] = []
    for each in fields(tree):
        if is_dataclass(hints[each.name]):
            found += options_of(hints[each.name], each.name)
        elif each.name in said:
            held, setting = said[each.name]
            default = setting.asked if setting.asked is not None or each.default is MISSING else each.default
            found.append(
                Option(
                    name=setting.name or each.name,
                    kind=setting.kind or (str if setting.choices else _kind(held)),
                    default=default,
                    setting=setting,
                    group=GROUPS[setting.group or group],
                )
            )
    return tuple(found)


def _kind(held: object) -> type:
    # The type of a field without None: str, int, bool or dict.
    (kind, *others) = (
        [each for each in get_args(held) if each is not type(None)] if isinstance(held, UnionType) else [held]
    )
    kind = dict if get_origin(kind) is Mapping else kind
    assert not others, f"a setting of type {held} needs a kind"
    assert kind in (str, int, bool, dict), f"a setting of type {held} needs a kind"
    return kind


OPTIONS = options_of(RunSettings)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds every setting as a flag. A flag that is not given is None, so that the variable or the file counts."""
    groups = {name: parser.add_argument_group(name) for name in GROUPS.values()}
    for option in OPTIONS:
        _add_option(groups[option.group], option)


def add_options_of(parser: argparse.ArgumentParser, command: str) -> None:
    """Adds the flags of the settings that a command other than `submit` takes."""
    for option in OPTIONS:
        if command in option.setting.commands:
            _add_option(parser, option)


def _add_option(group: argparse._ActionsContainer, option: Option) -> None:
    said = option.setting
    shown = "" if option.default in (None, "") or option.kind is bool else f" (default: {option.default})"
    text = said.help + shown
    if option.kind is bool:
        group.add_argument(
            option.flag, dest=option.name, action="store_const", const=not option.default, default=None, help=text
        )
    elif option.kind is list:
        group.add_argument(option.flag, dest=option.name, action="append", metavar=said.metavar, help=text)
    elif option.kind is dict:
        group.add_argument(option.flag, dest=option.name, nargs="+", action="extend", metavar=said.metavar, help=text)
    else:
        group.add_argument(option.flag, dest=option.name, metavar=said.metavar, choices=said.choices or None, help=text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A setting's value and who set it, e.g. `--mesh`, `PAB_PIPELINE_MESH`, `run.toml: mesh` or `default`."""

    value: object
    source: str


def choose(
    flags: Mapping[str, object],
    environment: Mapping[str, str],
    config: Path | None = None,
    options: Sequence[Option] = OPTIONS,
) -> dict[str, Chosen]:
    """Decides every setting: flag, else environment variable, else --config file, else default.

    Raises UsageError for an unknown name or a value of the wrong type; the message names the place.
    """
    file = read_config(config) if config else {}
    _refuse_unknown(environment, file, config, {option.name for option in options})
    chosen = {}
    for option in options:
        places = (
            (option.flag, flags.get(option.name)),
            (option.variable, environment.get(option.name)),
            (f"{config}: {option.name}", file.get(option.name)),
        )
        source, value = next(((s, v) for s, v in places if v is not None), ("default", option.default))
        chosen[option.name] = Chosen(value=_typed(option, value, source), source=source)
    return chosen


def read_config(path: Path) -> dict[str, object]:
    """Reads a --config file. Raises UsageError when it cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: {error}; give a TOML file such as: gpus_per_node = 4") from error


def _refuse_unknown(
    environment: Mapping[str, str], file: Mapping[str, object], config: Path | None, known: set[str]
) -> None:
    for name in sorted(set(file) - known):
        raise UsageError(f"{config}: {name!r} is no setting, allowed: {', '.join(sorted(known))}")
    for name in sorted(set(environment) - known):
        raise UsageError(
            f"{PREFIX}{name.upper()} is set and is no setting, allowed: "
            + ", ".join(PREFIX + allowed.upper() for allowed in sorted(known))
        )


def _typed(option: Option, value: object, source: str) -> object:
    if value is None:
        return {} if option.kind is dict else () if option.kind is list else None
    if option.kind is list:
        return _texts(value, source)
    if option.kind is dict:
        return _pairs(value, source)
    if option.kind is bool:
        return _truth(value, source)
    if option.kind is int:
        return _number(value, source, option.setting)
    return _text(value, source, option.setting)


def _text(value: object, source: str, setting: Setting) -> object:
    if setting.read is not None and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)  # a file may hold the number itself
    if not isinstance(value, str) or (not value and source != "default"):
        raise UsageError(f"{source}={value!r}, needs text")
    if setting.choices and value not in setting.choices:
        raise UsageError(f"{source}={value!r}, allowed: {', '.join(setting.choices)}")
    try:
        return value if setting.read is None else setting.read(value)
    except ValueError as error:
        raise UsageError(f"{source} {error}" if setting.is_secret else f"{source}={value!r}, {error}") from error


def _number(value: object, source: str, setting: Setting) -> int:
    try:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError(value)
        number = int(value)
        setting.check_number(number)
    except ValueError as error:
        raise UsageError(f"{source}={value!r}, {setting.needed_number}") from error
    return number


def _truth(value: object, source: str) -> bool:
    word = str(value).lower()
    if word not in _TRUE + _FALSE:
        raise UsageError(f"{source}={value!r}, allowed: {', '.join(_TRUE + _FALSE)}")
    return word in _TRUE


def _texts(value: object, source: str) -> tuple[str, ...]:
    if isinstance(value, Mapping):
        value = [f"{key}={entry}" if isinstance(entry, str) and entry else entry for key, entry in value.items()]
    texts = value if isinstance(value, list) else [value]
    for text in texts:
        if not isinstance(text, str) or not text:
            raise UsageError(f"{source}={text!r}, needs text")
    return tuple(texts)


def _pairs(value: object, source: str) -> dict[str, str | bool]:
    if isinstance(value, Mapping):
        return {str(key): entry if isinstance(entry, bool) else str(entry) for key, entry in value.items()}
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list):
        raise UsageError(f"{source}={value!r}, needs KEY=VALUE pairs")
    pairs: dict[str, str | bool] = {}
    for word in words:
        key, equals, entry = str(word).removeprefix("--").partition("=")
        if not re.fullmatch(r"[a-z][a-z-]*", key) or (equals and not entry):
            raise UsageError(f"{source}: {word!r} is not KEY=VALUE, e.g. constraint=a100 (KEY alone has no value)")
        pairs[key] = entry if equals else True
    return pairs
