"""Sequence parallelism in a transformer that somebody else wrote: hooks split what its modules take, and gather the result.

Where is said by a plan, as data; which ranks share the pass that runs now, by the `CurrentPass` of the model. What mixes
tokens, attention, must come to know of the split by itself (`pab/parallel/ulysses.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from pab.library.broadcast_module import LATENTS, CurrentPass, SiteBlock


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The dim along which a tensor is split over the ranks; a tensor of another number of dims stays whole."""

    dim: int
    num_dims: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleSplits:
    """What is split and gathered at one module.

    `inputs`: by parameter name; of a tuple each tensor is split. `outputs`: by position. `gather_dim`: of the output, whose
    tokens are those of the latents. `whole_inputs`: by parameter name the dim along which an input is gathered, whose
    tokens are those of the latents too. `counts`: parameters that say how many of the first tokens of the latents are
    something; a rank is told how many of them it has.
    """

    inputs: Mapping[str, Split] = field(default_factory=dict)
    outputs: Mapping[int, Split] = field(default_factory=dict)
    gather_dim: int | None = None
    whole_inputs: Mapping[str, int] = field(default_factory=dict)
    counts: tuple[str, ...] = ()


SequencePlan = Mapping[str, ModuleSplits]
"""By module path; the transformer itself is ""."""


def with_inputs(plan: SequencePlan, inputs: Mapping[str, Split]) -> SequencePlan:
    """Returns a plan that also splits these inputs of the transformer itself."""
    if not inputs:
        return plan
    whole = plan.get("", ModuleSplits())
    return {**plan, "": replace(whole, inputs={**whole.inputs, **inputs})}


def install_splits(transformer: nn.Module, plan: SequencePlan, current: CurrentPass) -> None:
    """Hooks a plan into a transformer whose sites are installed, so that the hooks of blocks lie outside of their graphs.

    Raises AttributeError naming a module, ValueError a parameter that is not there.
    """
    for path, splits in plan.items():
        module = transformer.get_submodule(path)
        if splits.inputs or splits.whole_inputs or splits.counts:
            module.register_forward_pre_hook(_input_splitter(module, path, splits, current), with_kwargs=True)
        if splits.outputs:
            module.register_forward_hook(_output_splitter(splits.outputs, current))
        if splits.gather_dim is not None:
            module.register_forward_hook(_gatherer(splits.gather_dim, current))


def _input_splitter(module: nn.Module, path: str, splits: ModuleSplits, current: CurrentPass) -> Callable[..., Any]:
    signature = module.signature if isinstance(module, SiteBlock) else inspect.signature(module.forward)
    needed = (*splits.inputs, *splits.whole_inputs, *splits.counts)
    absent = [name for name in needed if name not in signature.parameters]
    if absent:
        raise ValueError(f"module {path!r} takes no {absent[0]}, it takes {', '.join(signature.parameters)}")

    def split(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        given = signature.bind(*args, **kwargs)
        for name, dim in splits.whole_inputs.items():
            given.arguments[name] = current.sp.gather(given.arguments[name], dim, current.lengths[LATENTS])
        for name, how in splits.inputs.items():
            value = given.arguments.get(name)
            if isinstance(value, tuple):
                given.arguments[name] = tuple(_part(x, how, current) for x in value)
            elif value is not None and value.dim() == how.num_dims:
                current.lengths[name] = value.shape[how.dim]
                given.arguments[name] = _part(value, how, current)
        for name in splits.counts:
            given.arguments[name] = current.sp.own_size(current.lengths[LATENTS], given.arguments[name])
        return given.args, given.kwargs

    return split


def _output_splitter(splits: Mapping[int, Split], current: CurrentPass) -> Callable[..., Any]:
    def split(_module: nn.Module, _args: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(_part(x, splits[i], current) if i in splits else x for i, x in enumerate(output))

    return split


def _gatherer(dim: int, current: CurrentPass) -> Callable[..., Any]:
    def gather(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return current.sp.gather(output, dim, current.lengths[LATENTS])

    return gather


def _part(x: Tensor, how: Split, current: CurrentPass) -> Tensor:
    return current.sp.split(x, how.dim) if x.dim() == how.num_dims else x
