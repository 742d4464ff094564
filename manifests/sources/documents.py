"""The rows of a JSON document: a list, columns of lists, objects by name, prompts by category, or a table of pandas.

A list of objects is read piece by piece, everything else as a whole.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping, Sequence
from io import BufferedReader
from typing import Any, BinaryIO

from manifests.errors import ManifestError, Problem, cut, shown

MAX_JSON_BYTES = 64 << 20
"""Of a document that is read as a whole, and of one object in a list. Lists and JSON lines may be longer."""
KEY = "key"
"""The column of the names under which rows lie in a document."""

WHOLE = "."
"""What stands for the whole document in `records`."""

_BLOCK_CHARS = 1 << 20
_MOST_SHOWN = 20
_DEPTH = 3
_SPACE = " \t\r\n"

Row = tuple[int, Mapping[str, Any] | Problem]


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object of its pairs, for `json.loads`. Raises ValueError where a name is there twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name!r} is there more than once")
        found[name] = value
    return found


def document_rows(stream: BufferedReader, source: str, records: str | None, prompt_column: str) -> Iterator[Row]:
    """Yields the rows of a document, numbered from 0. `records`: names that lead to them; None: found.

    Raises ManifestError for what is no JSON, and where the user has to say which rows are meant.
    """
    if records in (None, "", WHOLE) and stream.peek(_BLOCK_CHARS).removeprefix(codecs.BOM_UTF8).lstrip().startswith(
        b"["
    ):
        yield from _numbered(_list_items(stream, source))
        return
    document = _whole(stream, source)
    names = _find(document, source, prompt_column) if records is None else records.removeprefix(WHOLE)
    yield from _numbered(_rows(_at(document, names, source), prompt_column))


def _numbered(rows: Iterator[Any]) -> Iterator[Row]:
    for number, row in enumerate(rows):
        if isinstance(row, dict):
            yield number, row
        elif isinstance(row, str):
            yield number, {"prompt": row}
        else:
            found = cut(json.dumps(row), 40)
            yield number, Problem(row=number, value=found, allowed="an object is needed", action="fix the file")


def _list_items(stream: BinaryIO, source: str) -> Iterator[Any]:
    """Yields the values of a list, each as soon as it has been read."""
    text, decoder = codecs.getreader("utf-8")(stream), json.JSONDecoder(object_pairs_hook=without_duplicates)
    held, at, is_first = "", 0, True
    while True:
        try:
            found = _next_item(decoder, held, at, is_first=is_first)
        except (ValueError, IndexError, RecursionError) as error:
            # It may only not be whole yet. Twice as much each time: what is long is not tried often.
            more = _more(text, source, max(_BLOCK_CHARS, len(held) - at)) if len(held) - at < MAX_JSON_BYTES else ""
            if not more or isinstance(error, RecursionError):
                raise _no_json(
                    source, str(error) if isinstance(error, ValueError) else "the list does not end"
                ) from error
            held, at = held[at:] + more, 0
            continue
        if found is None:
            return
        value, at = found
        is_first = False
        yield value


def _next_item(decoder: json.JSONDecoder, text: str, at: int, *, is_first: bool) -> tuple[Any, int] | None:
    """Returns the list's next value and where it ends, None after the last. Raises what a text that is not whole raises."""
    at = _skip(text, at)
    if is_first:
        at = _skip(text, at + 1)
    if text[at] == "]":
        return None
    if not is_first:
        if text[at] != ",":
            raise ValueError(f"a comma is needed between rows, found {text[at : at + 20]!r}")
        at = _skip(text, at + 1)
    value, end = decoder.raw_decode(text, at)
    text[end]  # a number at the end of a block may go on
    return value, end


def _skip(text: str, at: int) -> int:
    while text[at] in _SPACE:
        at += 1
    return at


def _more(text: codecs.StreamReader, source: str, chars: int) -> str:
    try:
        return text.read(chars)
    except UnicodeDecodeError as error:
        raise _no_utf8(source, error) from error


def _whole(stream: BinaryIO, source: str) -> Any:
    data = stream.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        allowed = f"a JSON document of more than {MAX_JSON_BYTES:,} bytes that is no list is not read"
        raise ManifestError(source, [Problem(allowed=allowed, action="write it as JSON lines, one object a line")])
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=without_duplicates)
    except UnicodeDecodeError as error:
        raise _no_utf8(source, error) from error
    except (ValueError, RecursionError) as error:
        raise _no_json(source, str(error)) from error


def _no_json(source: str, why: str) -> ManifestError:
    return ManifestError(source, [Problem(allowed=f"this is not JSON ({why})", action="fix the file")])


def _no_utf8(source: str, error: UnicodeDecodeError) -> ManifestError:
    raw = bytes(error.object[max(0, error.start - 12) : error.start + 12])
    action = f"save it as UTF-8, or name its encoding: --encoding windows-1252 would read {raw.decode('cp1252', 'replace')!r}"
    return ManifestError(source, [Problem(value=repr(raw), allowed="valid UTF-8 is needed", action=action)])


def _find(document: Any, source: str, prompt_column: str) -> str:
    """Returns the names that lead to the rows of a document. Raises ManifestError where there are several, or none."""
    if _is_rows(document, prompt_column):
        return ""
    found = list(_lists(document, "", _DEPTH))
    if len(found) != 1:
        listed = ", ".join(map(shown, found[:_MOST_SHOWN]))
        allowed = (
            f"the document has {len(found)} lists of rows: {listed}" if found else "the document has no list of rows"
        )
        action = (
            f"say which one it is: --records NAME (or {WHOLE} for all of them)" if found else "write a list of objects"
        )
        raise ManifestError(source, [Problem(allowed=allowed, action=action)])
    return found[0]


def _is_rows(value: Any, prompt_column: str) -> bool:
    """Whether a whole value is rows: a list, one object with a prompt, or one of the forms of `_rows`."""
    if not isinstance(value, dict) or not value:
        return isinstance(value, list)
    if prompt_column in value or set(value) >= {"columns", "data"}:
        return True
    values = list(value.values())
    if all(isinstance(each, dict) for each in values):
        return len(values) > 1 and not any(True for each in values for _ in _lists(each, "", _DEPTH))
    if all(isinstance(each, list) for each in values):
        return all(isinstance(text, str) for each in values for text in each)
    return len(values) > 1 and all(isinstance(each, str) for each in values)


def _lists(value: object, name: str, depth: int) -> Iterator[str]:
    if isinstance(value, list) and value and (_all(value, dict) or _all(value, str)):
        yield name
    elif isinstance(value, dict) and depth:
        for key, inner in value.items():
            yield from _lists(inner, f"{name}.{key}" if name else key, depth - 1)


def _all(values: Sequence[Any], kind: type) -> bool:
    return all(isinstance(each, kind) for each in values)


def _at(value: Any, names: str, source: str) -> Any:
    for name in names.split(".") if names else ():
        if not isinstance(value, dict) or name not in value:
            listed = ", ".join(map(shown, list(value)[:_MOST_SHOWN])) if isinstance(value, dict) else "no names"
            problem = Problem(value=f"--records {names!r}", allowed=f"the document has {listed}", action="name a list")
            raise ManifestError(source, [problem])
        value = value[name]
    return value


def _rows(value: Any, prompt_column: str) -> Iterator[Any]:
    if isinstance(value, list):
        yield from value
    elif not isinstance(value, dict):
        yield value
    elif set(value) >= {"columns", "data"} and isinstance(value["columns"], list) and isinstance(value["data"], list):
        yield from (dict(zip(value["columns"], row, strict=False)) for row in value["data"] if isinstance(row, list))
    elif isinstance(value.get(prompt_column), list):
        yield from _columns(value)
    elif isinstance(value.get(prompt_column), dict):  # columns, and the rows by name within each
        names = {name: None for column in value.values() if isinstance(column, dict) for name in column}
        yield from (
            {column: held.get(name) for column, held in value.items() if isinstance(held, dict)} for name in names
        )
    elif prompt_column not in value and value and all(isinstance(each, dict | list | str) for each in value.values()):
        yield from _by_name(value)
    else:
        yield value


def _columns(value: Mapping[str, Any]) -> Iterator[Any]:
    """Yields the rows of columns of lists; what is no list holds for every row."""
    lists = {name: column for name, column in value.items() if isinstance(column, list)}
    count = max(map(len, lists.values()))
    for at in range(count):
        cells = {name: column[at] if at < len(column) else None for name, column in lists.items()}
        yield {**{name: held for name, held in value.items() if name not in lists}, **cells}


def _by_name(value: Mapping[str, Any]) -> Iterator[Any]:
    for name, held in value.items():
        for row in held if isinstance(held, list) else [held]:
            if isinstance(row, dict):
                yield {**({} if KEY in row else {KEY: name}), **row}
            elif isinstance(row, str):
                yield {KEY: name, "prompt": row}
            else:
                yield row
