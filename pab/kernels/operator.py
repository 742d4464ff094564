"""Operators that a compiled graph calls without looking inside.

A call through torch's own decorator `custom_op` takes the host 20 microseconds and more, and a step has hundreds of them:
where each has little work the host falls behind the device. Calls of these take half of that. They have no gradients, and
what they return must be new tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])
_LIBRARY = torch.library.Library("pab", "FRAGMENT")


def operator(name: str, *, mutates: Sequence[str] = ()) -> Callable[[_Function], _Function]:
    """Makes a function of typed arguments the operator `pab::name`. `mutates`: the tensors that it writes to."""

    def register(function: _Function) -> _Function:
        _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=tuple(mutates)))
        for device in ("CPU", "CUDA"):
            _LIBRARY.impl(name, function, device)
        return cast(_Function, getattr(torch.ops.pab, name).default)

    return register


def shapes_of(made: Callable[..., Any]) -> Callable[[_Function], _Function]:
    """Has a function say what an operator returns: empty tensors of the right shapes, dtypes and strides."""

    def register(function: _Function) -> _Function:
        torch.library.register_fake(cast(Any, made), function, lib=_LIBRARY)
        return function

    return register
