"""Foresight (arXiv 2506.00329, section 3): a block is reused if its output last changed little. Plain numbers, no torch.

All blocks compute during the warm-up, and its last changes give each block a threshold. After the warm-up, a block's last
computed output is reused as long as its last change is small against the threshold. A change is the mean squared difference
between two successive computed outputs of a block. Sums may stand for means, since outputs keep their size.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

MIN_WARM_UP_STEPS = 4
"""A threshold needs three changes, so four outputs."""
_CHANGES = MIN_WARM_UP_STEPS - 1
_NEEDED = "needs {'warm_up': share, 'reuse_steps': N, 'recompute_every': R, 'gamma': factor}, each of them optional"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForesightRules:
    """The method's parameters, at the paper's values: N1R2, 15 % warm-up, gamma 0.5.

    `warm_up`: share of the steps in which all blocks compute, rounded up to whole steps, at least four. `reuse_steps` (N):
    for how many steps in a row a kept output may be reused. `recompute_every` (R): all blocks compute at every R-th step.
    `gamma`: a block is reused while its change is at most gamma times its threshold.
    """

    warm_up: float = 0.15
    reuse_steps: int = 1
    recompute_every: int = 2
    gamma: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.warm_up <= 1:
            raise ValueError(f"foresight warm_up={self.warm_up}, allowed above 0 up to 1, a share of the steps")
        if not 1 <= self.reuse_steps < self.recompute_every:
            raise ValueError(
                f"foresight reuse_steps={self.reuse_steps}, recompute_every={self.recompute_every}, "
                "needs 1 <= reuse_steps < recompute_every"
            )
        if not (self.gamma > 0 and math.isfinite(self.gamma)):
            raise ValueError(f"foresight gamma={self.gamma}, needs a number above 0")

    def to_dict(self) -> dict[str, object]:
        """Returns the rules as JSON values under "foresight", from where `foresight_from_dict` reads them."""
        return {"foresight": asdict(self)}

    @property
    def digest(self) -> str:
        """Names the rules in a clip's digest and in reports: 12 hex digits."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]

    def warm_up_steps(self, num_steps: int) -> int:
        """Returns how many steps the warm-up has; it may be more than `num_steps`."""
        return max(MIN_WARM_UP_STEPS, math.ceil(self.warm_up * num_steps))

    def may_reuse(self, step: int, num_steps: int) -> bool:
        """Whether blocks may reuse at this step; if not, all compute."""
        since_warm_up = step - (self.warm_up_steps(num_steps) - 1)
        return since_warm_up > 0 and since_warm_up % self.recompute_every != 0

    def least_share(self, num_steps: int) -> float:
        """Returns the smallest possible share of computed block calls: every block reuses whenever it may."""
        computed = age = 0
        for step in range(num_steps):
            age = age + 1 if self.may_reuse(step, num_steps) and age < self.reuse_steps else 0
            computed += age == 0
        return computed / num_steps

    def table(self, num_steps: int) -> str:
        """Returns what is known before a clip is rendered, as text: one letter per step."""
        letters = "".join("?" if self.may_reuse(step, num_steps) else "C" for step in range(num_steps))
        return (
            f"all blocks          {letters}  (C compute, ? each block decides while the clip is rendered)\n"
            f"block calls that compute: {self.least_share(num_steps):.0%} at least, all at most; planned with all"
        )


FORESIGHT_PRESETS: Mapping[str, ForesightRules] = {
    "foresight": ForesightRules(),
    "foresight-n2r3": ForesightRules(reuse_steps=2, recompute_every=3),
}
"""The two settings of the paper, for every family whose model keeps outputs of whole blocks."""


def foresight_from_dict(values: object) -> ForesightRules:
    """Reads the parameters from JSON values. Raises ValueError naming what is wrong."""
    if not isinstance(values, Mapping):
        raise ValueError(f"broadcast rules: foresight={values!r}, {_NEEDED}")
    known = {f.name: f.type for f in fields(ForesightRules)}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"broadcast rules: foresight has no {name!r}, {_NEEDED}")
        kinds = (int,) if known[name] == "int" else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise ValueError(f"broadcast rules: foresight {name}={value!r}, needs a number of type {known[name]}")
    return ForesightRules(**values)


@dataclass(slots=True, kw_only=True)
class ForesightDecisions:
    """One clip's decisions: takes changes as they are measured, and decides per step which blocks reuse.

    `thresholds` and `changes` have one value per block. `steps` has, for each step decided so far, whether each block reuses.
    """

    rules: ForesightRules
    num_steps: int
    num_blocks: int
    thresholds: list[float] = field(init=False)
    changes: list[float] = field(init=False)
    steps: list[tuple[bool, ...]] = field(default_factory=list)
    _ages: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.thresholds = [0.0] * self.num_blocks
        self.changes = [math.inf] * self.num_blocks
        self._ages = [0] * self.num_blocks

    @property
    def warm_up_steps(self) -> int:
        """Steps of the warm-up."""
        return self.rules.warm_up_steps(self.num_steps)

    def measures(self, step: int) -> bool:
        """Whether a change at this step is needed, for the threshold or for a later decision."""
        if step < self.warm_up_steps - _CHANGES:
            return False
        return any(self.rules.may_reuse(later, self.num_steps) for later in range(step + 1, self.num_steps))

    def keeps(self, step: int) -> bool:
        """Whether an output computed at this step is needed later: to measure a change, or to be reused."""
        return step >= self.warm_up_steps - _CHANGES - 1 and (
            step + 1 < self.num_steps
            and (self.measures(step + 1) or self.rules.may_reuse(step + 1, self.num_steps))
        )  # fmt: skip

    def measured(self, step: int, changes: Sequence[float | None]) -> None:
        """Takes each block's change at a step; None for a block that did not compute."""
        before = self.warm_up_steps - 1 - step
        for block, change in enumerate(changes):
            if change is None:
                continue
            self.changes[block] = change
            if 0 <= before < _CHANGES:
                self.thresholds[block] += change / 10**before

    def decide(self, step: int) -> tuple[bool, ...]:
        """Returns, per block, whether its kept output is reused at a step. Steps must be decided in order."""
        assert step == len(self.steps), f"step {step} is asked for, step {len(self.steps)} is next"
        allowed = self.rules.may_reuse(step, self.num_steps)
        reuse = tuple(
            allowed and age < self.rules.reuse_steps and change <= self.rules.gamma * threshold
            for age, change, threshold in zip(self._ages, self.changes, self.thresholds, strict=True)
        )
        self._ages = [age + 1 if reused else 0 for age, reused in zip(self._ages, reuse, strict=True)]
        self.steps.append(reuse)
        return reuse
