"""The residual of the block stack: what all blocks of a model together add to its tokens, kept to stand in for them.

At a step that leaves the blocks out, the model still embeds latents and time and projects its tokens by the step's own
modulation. What the blocks would have added is told by one residual that was computed before, as it is or scaled, or by two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

LINEAR = "linear"
"""In a plan file: the line through the last two computed residuals, over the noise levels."""
RESIDUAL_LETTER, RESIDUAL_PATTERN = "R", "r"
Weights = tuple[float, ...]
"""Of the last computed residual and, if there is a second weight, of the one computed before it. Empty for `LINEAR`."""
KEPT: Weights = (1.0,)
_NEEDED = (
    "needs {step: 1.0} for the residual as it was kept, another number to scale it, [last, before] for weights of the last "
    'two, or "linear", at steps without a pass'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StandIn:
    """What stands in at a step without blocks: `last_weight` * residual of step `last`, and the same of `before`."""

    last: int
    last_weight: float = 1.0
    before: int | None = None
    before_weight: float = 0.0

    @property
    def parts(self) -> tuple[tuple[int, float], ...]:
        """The steps whose residuals are added up, each with its weight."""
        last = (self.last, self.last_weight)
        return (last,) if self.before is None else (last, (self.before, self.before_weight))


def residual_from_json(values: object) -> tuple[tuple[int, Weights], ...]:
    """Reads a plan's "residual". Raises ValueError naming what is wrong."""
    if not isinstance(values, Mapping):
        raise ValueError(f"broadcast rules: steps residual={shortened(values)}, {_NEEDED}")
    found = []
    for step, value in values.items():
        if not isinstance(step, str) or not step.isdecimal():
            raise ValueError(f"broadcast rules: steps residual has the step {shortened(step)}, {_NEEDED}")
        found.append((int(step), _weights(step, value)))
    return tuple(sorted(found))


def _weights(step: str, value: object) -> Weights:
    if value == LINEAR:
        return ()
    numbers: list[Any] = value if isinstance(value, list) else [value]
    known = all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers)
    if not known or not 1 <= len(numbers) <= 2 or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"broadcast rules: steps residual at step {step}: {shortened(value)}, {_NEEDED}")
    return tuple(float(number) for number in numbers)


def shortened(value: object) -> str:
    """Returns a value of a file as a message shows it."""
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def residual_to_json(residual: Iterable[tuple[int, Weights]]) -> dict[str, object]:
    """Returns what `residual_from_json` reads."""
    return {
        str(step): LINEAR if not weights else weights[0] if len(weights) == 1 else list(weights)
        for step, weights in residual
    }


def check_residual(residual: Sequence[tuple[int, Weights]], passes: Sequence[int] | None, num_steps: int) -> None:
    """Raises ValueError where a residual is to stand in at a step with a pass, or before there is one to keep."""
    if any(a >= b for (a, _), (b, _) in pairwise(residual)):
        raise ValueError(f"plan residual at steps {[step for step, _ in residual]}, needs each once, rising")
    for step, weights in residual:
        if step >= num_steps:
            raise ValueError(f"plan residual at step {step}, allowed 1 to {num_steps - 1}")
        if passes is None or step in passes:
            raise ValueError(f"plan residual at step {step}, at which passes has a pass; leave one of them out")
        needed = 1 if len(weights) == 1 else 2
        if sum(each < step for each in passes) < needed:
            raise ValueError(
                f"plan residual at step {step} needs {needed} passes before it; scale the last one instead"
            )


def spread_residual(
    residual: Iterable[tuple[int, Weights]], planned_steps: int, steps: Iterable[int], num_steps: int
) -> dict[int, Weights]:
    """Returns what stands in at which of `steps`, of `num_steps`, if a plan for `planned_steps` steps says `residual`.

    A step that covers several of the plan's takes the mean of their weights, or the line if one of them does.
    """
    planned, found = dict(residual), dict[int, Weights]()
    for step in steps:
        covered = range(step * planned_steps // num_steps, -(-(step + 1) * planned_steps // num_steps))
        weights = [planned[each] for each in covered if each in planned]
        if weights:
            found[step] = _mean(weights)
    return found


def _mean(weights: Sequence[Weights]) -> Weights:
    if not all(weights):
        return ()
    longest = max(map(len, weights))
    filled = [each + (0.0,) * (longest - len(each)) for each in weights]
    return tuple(math.fsum(column) / len(filled) for column in zip(*filled, strict=True))


def stand_ins(
    weights: Mapping[int, Weights], computing: Sequence[int], levels: Sequence[float], resets: Iterable[int]
) -> dict[int, StandIn]:
    """Returns by step which residuals stand in.

    `computing`: the steps at which the blocks run, rising. `levels`: the noise level of every step. No residual from before
    one of the steps `resets` is used from it on. Where there is one residual alone, it gets all the weight.
    """
    found: dict[int, StandIn] = {}
    for step, wanted in weights.items():
        begin = max((reset for reset in resets if reset <= step), default=0)
        made = [each for each in computing if begin <= each < step]
        last, before = made[-1], made[-2] if len(made) > 1 else None
        if len(wanted) == 1 or before is None:
            found[step] = StandIn(last=last, last_weight=sum(wanted) if wanted else 1.0)
            continue
        far = levels[last] - levels[before]
        ahead = (levels[step] - levels[last]) / far if far else 0.0
        last_weight, before_weight = wanted or (1 + ahead, -ahead)
        found[step] = StandIn(last=last, last_weight=last_weight, before=before, before_weight=before_weight)
    return found
