"""Plain values as bytes and back, by their declared type: JSON, with tensors and bytes behind it as they are.

Ranks exchange values in this form. Pickles are not used: loading one runs what the sender wants. Here the receiver says
which type it expects, and nothing but values of that type can come out.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch

_SIZE_BYTES = 8
_ATOMS = (bool, int, float, str)
_DTYPES = {str(each): each for each in (
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32,
    torch.float64, torch.bool,
)}  # fmt: skip


class PlainValueError(ValueError):
    """A value, or the bytes of one, is not of the declared type; the message names both."""


def to_bytes(value: object, kind: Any) -> bytes:
    """Returns a value of type `kind` as bytes: 8 bytes of length, JSON, then the contents of tensors and `bytes`.

    `kind`: None, bool, int, float, str, bytes, torch.Tensor, Any (for JSON values), a dataclass, or list, set, tuple, dict,
    Sequence, Mapping or a union of these. Raises PlainValueError.
    """
    parts: list[bytes] = []
    plain = _to_plain(value, kind, parts)
    head = json.dumps({"value": plain, "parts": [len(part) for part in parts]}).encode()
    return b"".join([len(head).to_bytes(_SIZE_BYTES, "big"), head, *parts])


def from_bytes(data: bytes, kind: Any) -> Any:
    """Returns the value of type `kind` that `to_bytes` was given. Raises PlainValueError."""
    size = int.from_bytes(data[:_SIZE_BYTES], "big")
    try:
        head = json.loads(data[_SIZE_BYTES : _SIZE_BYTES + size])
        plain, sizes = head["value"], head["parts"]
        at = _SIZE_BYTES + size
        parts: list[bytes] = []
        for length in sizes:
            parts.append(data[at : at + length])
            at += length
        return _from_plain(plain, kind, parts)
    except (LookupError, TypeError, ValueError) as error:
        raise PlainValueError(f"{len(data)} bytes are no {_name(kind)}: {error}") from error


def _to_plain(value: object, kind: Any, parts: list[bytes]) -> Any:
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if kind is Any:
        return _json(value)
    if origin in (typing.Union, types.UnionType):
        at = next((at for at, each in enumerate(arguments) if _is_a(value, each)), None)
        if at is None:
            raise PlainValueError(f"{value!r:.200} is no {_name(kind)}")
        return [at, _to_plain(value, arguments[at], parts)]
    if not _is_a(value, kind):
        raise PlainValueError(f"{value!r:.200} is no {_name(kind)}")
    if kind is None or origin in (types.NoneType, *_ATOMS):
        return value
    if isinstance(value, bytes):
        parts.append(value)
        return len(parts) - 1
    if isinstance(value, torch.Tensor):
        here = value.detach().cpu().contiguous()
        parts.append(here.reshape(-1).view(torch.uint8).numpy().tobytes())
        return [len(parts) - 1, str(here.dtype), list(here.shape)]
    if dataclasses.is_dataclass(value):
        made_of: Any = type(value)
        return {name: _to_plain(getattr(value, name), of, parts) for name, of in _fields(made_of).items()}
    if isinstance(value, Mapping):
        return [
            [_to_plain(each, of, parts) for each, of in zip(pair, arguments, strict=True)] for pair in value.items()
        ]
    if not isinstance(value, Sequence | set):
        raise PlainValueError(f"{_name(kind)} is no type of a plain value")
    inside = _types_inside(origin, arguments, len(value))
    return [_to_plain(each, of, parts) for each, of in zip(value, inside, strict=True)]


def _from_plain(plain: Any, kind: Any, parts: Sequence[bytes]) -> Any:
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if kind is Any:
        return plain
    if origin in (typing.Union, types.UnionType):
        at, inside = plain
        return _from_plain(inside, arguments[at], parts)
    if kind is None or origin in (types.NoneType, *_ATOMS):
        if not _is_a(plain, kind):
            raise PlainValueError(f"{plain!r:.200} is no {_name(kind)}")
        return plain
    if origin is bytes:
        return parts[plain]
    if origin is torch.Tensor:
        at, dtype, shape = plain
        empty = torch.empty(0, dtype=torch.uint8)
        flat = torch.frombuffer(bytearray(parts[at]), dtype=torch.uint8) if parts[at] else empty
        return flat.view(_DTYPES[dtype]).reshape(shape)
    if dataclasses.is_dataclass(origin):
        make = typing.cast(Callable[..., Any], origin)
        of = _fields(typing.cast(type, origin))
        if not isinstance(plain, dict) or set(plain) != set(of):
            raise PlainValueError(f"{plain!r:.200} is no {_name(kind)}")
        return make(**{name: _from_plain(plain[name], each, parts) for name, each in of.items()})
    if origin in (dict, Mapping):
        return {
            _from_plain(key, arguments[0], parts): _from_plain(inside, arguments[1], parts) for key, inside in plain
        }
    if origin not in (list, set, tuple, Sequence):
        raise PlainValueError(f"{_name(kind)} is no type of a plain value")
    inside = [
        _from_plain(each, of, parts)
        for each, of in zip(plain, _types_inside(origin, arguments, len(plain)), strict=True)
    ]
    return {list: list, set: set}.get(origin, tuple)(inside)


def _is_a(value: object, kind: Any) -> bool:
    """Whether a value is of a type, as far as its outermost class tells."""
    origin = typing.get_origin(kind) or kind
    if kind is None or origin is types.NoneType:
        return value is None
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if origin in (Sequence, Mapping):
        return isinstance(value, origin) and not isinstance(value, str | bytes)
    return isinstance(origin, type) and isinstance(value, origin)


def _types_inside(origin: Any, arguments: Sequence[Any], number: int) -> Sequence[Any]:
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is ...):
        return arguments
    return [arguments[0]] * number


@cache
def _fields(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {each.name: hints[each.name] for each in dataclasses.fields(kind) if each.init}


def _json(value: object) -> Any:
    return json.loads(json.dumps(value))


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
