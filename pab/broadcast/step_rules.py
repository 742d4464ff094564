"""An explicit plan: the steps at which the model runs and, per group of sites, the steps at which they compute.

`calibrate` finds and writes such plans. At a step without a pass, the last prediction is reused, or the model runs without
its blocks and a kept residual stands in for them (`residual.py`). At a step with a pass, a site that does not compute reuses
its last computed output. Steps count model calls. If a clip has another number of steps than the plan, each of its steps
covers one or more of the plan's steps and computes if any of these does. So decisions stay at their noise levels, and nothing
is reused over a longer way than in the plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeGuard

from pab.broadcast.residual import (
    Weights,
    check_residual,
    residual_from_json,
    residual_to_json,
    shortened,
    spread_residual,
)

if TYPE_CHECKING:
    from pab.broadcast.sites import Site

_NEEDED = (
    "needs {'num_steps': N, 'groups': [{'kind': K, 'stack': S, 'compute': [0, 2, ...]}, ...]}; a group may name its "
    "'blocks', the plan its 'family', in 'passes' the steps at which the model runs, in 'residual' what stands in at others"
)


_SHOWN = 3
"""Groups in a message."""
MAX_STEPS = 10_000
"""Of a plan; no family has more than a thousand. Every step is looked at, so a slip of the pen would take hours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepGroup:
    """Sites of one kind in one stack of blocks, and the steps at which they compute. `blocks` None: all of the stack."""

    kind: str
    stack: str
    compute: tuple[int, ...]
    blocks: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not _rises(self.compute):
            raise ValueError(f"plan group {self}: compute={list(self.compute)}, needs rising steps that begin with 0")
        if self.blocks is not None and (not self.blocks or len(set(self.blocks)) < len(self.blocks)):
            raise ValueError(f"plan group {self}: blocks={list(self.blocks)}, needs some, each once; leave out for all")

    def __str__(self) -> str:
        blocks = f" blocks {self.blocks[0]}..{self.blocks[-1]}" if self.blocks else ""
        return f"{self.kind} in {self.stack}{blocks}"

    def holds(self, site: Site) -> bool:
        """Whether a site belongs to the group."""
        return (site.kind, site.stack) == (self.kind, self.stack) and (self.blocks is None or site.block in self.blocks)

    def to_dict(self) -> dict[str, object]:
        """Returns the group as JSON values."""
        values: dict[str, object] = {"kind": self.kind, "stack": self.stack}
        if self.blocks is not None:
            values["blocks"] = list(self.blocks)
        return values | {"compute": list(self.compute)}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRules:
    """A plan for `num_steps` steps. Sites that belong to no group compute in every pass.

    `passes`: the steps at which the model runs; None for all. `family`: the only family that may use the plan; None for any
    with the same sites. `residual`: by step without a pass, with what weights residuals stand in for the blocks; at the
    other ones the last prediction does.
    """

    num_steps: int
    groups: tuple[StepGroup, ...]
    passes: tuple[int, ...] | None = None
    family: str | None = None
    residual: tuple[tuple[int, Weights], ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.num_steps <= MAX_STEPS:
            raise ValueError(f"plan num_steps={self.num_steps}, allowed 1 to {MAX_STEPS}")
        if self.passes is not None and (not _rises(self.passes) or self.passes[-1] >= self.num_steps):
            raise ValueError(
                f"plan passes={list(self.passes)}, needs rising steps that begin with 0, up to {self.num_steps - 1}"
            )
        check_residual(self.residual, self.passes, self.num_steps)
        for group in self.groups:
            skipped = () if self.passes is None else sorted(set(group.compute) - set(self.passes))
            if skipped:
                raise ValueError(f"plan group {group}: computes at step {skipped[0]}, at which passes has no pass")
            if group.compute[-1] >= self.num_steps:
                raise ValueError(
                    f"plan group {group}: computes at step {group.compute[-1]}, allowed 0 to {self.num_steps - 1}"
                )

    def to_dict(self) -> dict[str, object]:
        """Returns the plan as JSON values; `rules_from_dict` reads it back."""
        family = {} if self.family is None else {"family": self.family}
        groups = [group.to_dict() for group in self.groups]
        passes = {} if self.passes is None else {"passes": list(self.passes)}
        residual = {"residual": residual_to_json(self.residual)} if self.residual else {}
        return {"steps": {**family, "num_steps": self.num_steps, **passes, **residual, "groups": groups}}

    @property
    def digest(self) -> str:
        """Names the plan in a clip's digest and in reports: 12 hex digits."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]

    def misfit(self, family: str, sites: Sequence[Site]) -> str | None:
        """Returns why a family with these sites cannot use the plan; None if it can."""
        if self.family not in (None, family):
            return (
                f"the plan is for family {shortened(self.family)}, not {family}; calibrate --model {family} finds one"
            )
        have = sorted({(site.kind, site.stack) for site in sites})
        for group in self.groups:
            held = [site for site in sites if group.holds(site)]
            if not held or (group.blocks is not None and {site.block for site in held} != set(group.blocks)):
                places = ", ".join(f"{kind} in {stack}" for kind, stack in have)
                return f"the plan has a group {group}, {family} has no such sites; it has {places}"
        for site in sites:
            holding = [str(group) for group in self.groups if group.holds(site)]
            if len(holding) > 1:
                more = "; ..." if len(holding) > _SHOWN else ""
                return f"the plan has {site.name} in {len(holding)} groups: {'; '.join(holding[:_SHOWN])}{more}"
        return None

    def computed_share(self, sites: Sequence[Site]) -> float:
        """Returns the share of all calls that a clip of the plan's own number of steps computes."""
        passes = len(self.passes) if self.passes is not None else self.num_steps
        computing = [self.computing(site, self.num_steps) for site in sites]
        return sum(passes if each is None else len(each) for each in computing) / (self.num_steps * len(sites))

    def skipped(self, num_steps: int) -> frozenset[int]:
        """Returns which of `num_steps` steps have no pass, or one without blocks."""
        if self.passes is None:
            return frozenset()
        return frozenset(range(num_steps)) - spread_over(self.passes, self.num_steps, num_steps)

    def residual_weights(self, num_steps: int) -> dict[int, Weights]:
        """Returns with what weights residuals stand in for the blocks, at which of the `skipped` steps."""
        return spread_residual(self.residual, self.num_steps, sorted(self.skipped(num_steps)), num_steps)

    def computing(self, site: Site, num_steps: int) -> frozenset[int] | None:
        """Returns at which of `num_steps` steps a site computes; None for all of them."""
        for group in self.groups:
            if group.holds(site):
                return spread_over(group.compute, self.num_steps, num_steps)
        return None


def spread_over(compute: Iterable[int], planned_steps: int, num_steps: int) -> frozenset[int]:
    """Returns which of `num_steps` steps compute, if a plan for `planned_steps` steps computes at the steps `compute`."""
    planned = set(compute)
    return frozenset(
        step
        for step in range(num_steps)
        if any(
            s in planned for s in range(step * planned_steps // num_steps, -(-(step + 1) * planned_steps // num_steps))
        )
    )


def step_rules_from_dict(values: object) -> StepRules:
    """Reads a plan from the value of "steps" in JSON. Raises ValueError naming what is wrong."""
    if not isinstance(values, Mapping) or not isinstance(values.get("groups"), list):
        raise ValueError(f"broadcast rules: steps={shortened(values)}, {_NEEDED}")
    unknown = sorted(set(values) - {f.name for f in fields(StepRules)})
    if unknown:
        raise ValueError(f"broadcast rules: steps has no {unknown[0]!r}, {_NEEDED}")
    groups = tuple(_group(entry) for entry in values["groups"])
    num_steps, family = values.get("num_steps"), values.get("family")
    if not _whole(num_steps) or not isinstance(family, str | None):
        raise ValueError(f"broadcast rules: steps num_steps={num_steps!r}, family={family!r}, {_NEEDED}")
    passes = values.get("passes")
    if passes is not None and not _all_whole(passes):
        raise ValueError(f"broadcast rules: steps passes={shortened(passes)}, {_NEEDED}")
    passes = None if passes is None else tuple(passes)
    residual = residual_from_json(values.get("residual", {}))
    return StepRules(num_steps=num_steps, groups=groups, passes=passes, family=family, residual=residual)


def _group(entry: Any) -> StepGroup:
    known = {f.name for f in fields(StepGroup)}
    texts = isinstance(entry, Mapping) and all(isinstance(entry.get(name), str) for name in ("kind", "stack"))
    if not texts or not set(entry) <= known or not _all_whole(entry.get("compute")):
        raise ValueError(f"broadcast rules: steps group {shortened(entry)}, {_NEEDED}")
    if "blocks" in entry and not _all_whole(entry["blocks"]):
        raise ValueError(f"broadcast rules: steps group {shortened(entry)}, blocks are a list of block numbers")
    blocks = {"blocks": tuple(entry["blocks"])} if "blocks" in entry else {}
    return StepGroup(kind=entry["kind"], stack=entry["stack"], compute=tuple(entry["compute"]), **blocks)


def _rises(steps: Sequence[int]) -> bool:
    return bool(steps) and steps[0] == 0 and all(a < b for a, b in pairwise(steps))


def _whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _all_whole(values: object) -> bool:
    return isinstance(values, list) and all(_whole(value) for value in values)
