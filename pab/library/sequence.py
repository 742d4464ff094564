"""Sequence parallelism of transformers of the diffusers library, by the library's own context-parallel plan where it has one.

The plan is read as data and carried out by `SequenceParallel`. The library's own way needs an accelerator, and either lengths
that the ranks divide or an exchange of sizes before every all-to-all; and it counts no bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from pab.broadcast.sites import Site
from pab.library.broadcast_module import TEXT
from pab.library.sequence_hooks import ModuleSplits, SequencePlan, Split
from pab.weights.checkpoint import CheckpointError

TEXT_INPUTS = (TEXT, "encoder_attention_mask")
"""Text that only cross attention reads stays whole on every rank: then cross attention exchanges nothing."""


def library_plan(transformer_class: Any) -> SequencePlan:
    """Reads a class's plan; `TEXT_INPUTS` are left out of it.

    Raises CheckpointError if the installed library has no plan for the class, or one that this code does not understand.
    """
    published = getattr(transformer_class, "_cp_plan", None)
    if not published:
        raise _not_understood(transformer_class, "is not there")
    plan = {path: _module_splits(transformer_class, path, told) for path, told in published.items()}
    return {path: splits for path, splits in plan.items() if splits != ModuleSplits()}


def _module_splits(transformer_class: Any, path: str, told: Any) -> ModuleSplits:
    if hasattr(told, "gather_dim"):
        return ModuleSplits(gather_dim=told.gather_dim)
    if not isinstance(told, dict) or not all(hasattr(how, "split_dim") for how in told.values()):
        raise _not_understood(transformer_class, f"has {told!r} at module {path!r}")
    splits = {name: Split(dim=how.split_dim, num_dims=how.expected_dims) for name, how in told.items()}
    return ModuleSplits(
        inputs={name: split for name, split in splits.items() if isinstance(name, str) and name not in TEXT_INPUTS},
        outputs={name: split for name, split in splits.items() if isinstance(name, int)},
    )


def _not_understood(transformer_class: Any, why: str) -> CheckpointError:
    import diffusers

    return CheckpointError(
        f"diffusers {diffusers.__version__}: the context-parallel plan of {transformer_class.__name__} {why}; install a "
        "version from 0.39 on that has one, or report this"
    )


def exchange_tokens(transformer: nn.Module, sites: Iterable[Site], attention: Callable[..., Any]) -> None:
    """Gives every site that exchanges tokens the processor `attention`. To be called before sites are wrapped."""
    for site in sites:
        if site.all_to_alls:
            module: Any = transformer.get_submodule(site.name)
            module.set_processor(attention)
