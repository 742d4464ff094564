"""How much of a clip's denoising was truly computed: floating point operations of matrix products, attention, convolutions.

The same count for every method, whatever it calls what it leaves out. Additions, norms and extrapolations are not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
WEIGHED = ("attn1", "attn2", "ffn")
"""What of a Wan block has products."""


class OperationCounter(TorchDispatchMode):
    """Counts the operations that run inside of a `with` block, in inference mode or without gradients."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs an operation and adds what it takes."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operation = func._overloadpacket
        if operation is aten.linear:
            self.operations += 2 * args[0].numel() * args[1].shape[0]
        elif operation is aten.matmul:
            self.operations += 2 * result.numel() * args[0].shape[-1]
        elif operation is aten.scaled_dot_product_attention or "scaled_dot_product" in str(operation):
            query, key, value = args[:3]
            self.operations += 2 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        elif operation in {aten.conv1d, aten.conv2d, aten.conv3d}:
            self.operations += 2 * result.numel() * args[1][0].numel()
        elif (formula := flop_registry.get(operation)) is not None:
            self.operations += formula(*args, **kwargs, out_val=result)
        return result


@dataclass(slots=True)
class ModuleCounter:
    """Counts calls of a Wan transformer's parts that truly run, in rows of latents, and knows what each takes.

    It stands within the parts, below what any method puts around them, so it sees only what computes.
    """

    rows: Counter[str] = field(default_factory=Counter)
    per_row: dict[str, float] = field(default_factory=dict)

    def watch(self, transformer: nn.Module) -> None:
        """Watches a transformer from now on. Only before a method is put around its parts."""
        for name, part in _parts(transformer):
            part.forward = self._counting(name, part.forward)

    def weigh(self, transformer: nn.Module, run: Callable[[], object]) -> None:
        """Learns what a row of each part takes, from a clip of which everything is computed. `root`: all but the parts."""
        taken: Counter[str] = Counter()
        watched = {name: part.forward for name, part in _parts(transformer)}
        self.rows.clear()

        def weighing(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
            def weighed(*args: Any, **kwargs: Any) -> Any:
                before = counter.operations
                result = forward(*args, **kwargs)
                taken[name] += counter.operations - before
                return result

            return weighed

        for name, part in _parts(transformer):
            part.forward = weighing(name, part.forward)
        with OperationCounter() as counter:
            run()
        for name, part in _parts(transformer):
            part.forward = watched[name]
        taken["root"] = 2 * taken["root"] - taken.total()
        self.per_row = {name: taken[name] / rows for name, rows in self.rows.items()}
        self.rows.clear()

    @property
    def operations(self) -> float:
        """What ran since the last `clear`."""
        return sum(self.rows[name] * self.per_row[name] for name in self.rows)

    def clear(self) -> None:
        """Begins anew."""
        self.rows.clear()

    def _counting(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **kwargs: Any) -> Any:
            given = args[0] if args else kwargs["hidden_states"]
            self.rows[name] += len(given)
            return forward(*args, **kwargs)

        return counting


def _parts(transformer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    yield "root", transformer
    for number, block in enumerate(transformer.blocks):  # type: ignore[arg-type]
        inner = getattr(block, "block", block)
        for name in WEIGHED:
            part = getattr(inner, name)
            yield f"{number}.{name}", getattr(part, "module", part)
