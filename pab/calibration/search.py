"""The search for a static plan: the steps at which each group computes, for the least error at the end of a clip.

Reusing step s at step t moves the finished latents by the measured effect of reusing step t - 1 there, made larger by as
much as the output differs more. Movements add as vectors, so the error of a plan is a quadratic form in what it reuses.
Least error is sought under a budget: by taking away the computation that costs least error for its price until the budget
holds, then by exchanging computations as long as the error falls. Plain numbers; nothing is drawn at random.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
Chosen = npt.NDArray[np.bool_]
"""[G, S]: where a group computes."""
EXCHANGED = 64
"""Computations of the least worth that are tried against as many reuses of the most worth."""
_GAIN = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorModel:
    """What a plan is predicted to do.

    `effects` [G, S, G, S]: inner products of the movements that two reuses cause. `growth` [G, S, S]: how much further
    than from the step before, in amplitude, the output of step s (row) is from that of step t (column).
    """

    effects: Matrix
    growth: Matrix

    def reused(self, group: int, computes: npt.NDArray[np.bool_]) -> Matrix:
        """Returns [S]: how strongly each step of a group is moved; 0 where it computes."""
        steps = np.arange(len(computes))
        sources = np.maximum.accumulate(np.where(computes, steps, 0))
        return np.where(computes, 0.0, self.growth[group, sources, steps])

    def error(self, computes: Chosen) -> float:
        """Returns the predicted squared error of a plan."""
        reused = np.stack([self.reused(group, row) for group, row in enumerate(computes)])
        return float(np.einsum("gs,gsht,ht->", reused, self.effects, reused))


def error_model(effects: Sequence[Matrix], relative: Matrix) -> ErrorModel:
    """Builds the model from [G, S, n] movements of each clip and the relative change [G, S, S] of all of them.

    Every clip counts alike: its inner products are told in parts of their sum over single reuses.
    """
    products = []
    for clip in effects:
        product = np.einsum("gsn,htn->gsht", clip, clip, optimize=True)
        products.append(product / max(np.einsum("gsgs->", product), np.finfo(np.float64).tiny))
    steps = np.arange(relative.shape[1])
    neighbours = np.maximum(relative[:, np.maximum(steps - 1, 0), steps], np.finfo(np.float64).tiny)
    growth = np.sqrt(relative / neighbours[:, None, :])
    growth[:, :, 0] = 0.0
    return ErrorModel(effects=np.mean(products, axis=0), growth=growth)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a plan may cost, counted in one way or several.

    `prices` [P, G]: what one computation of each group costs, where all groups and steps together cost 1. `shares` [P]: how
    much of that a plan may compute.
    """

    prices: Matrix
    shares: Matrix

    def cost(self, computes: Chosen) -> Matrix:
        """Returns [P]: what a plan computes."""
        return self.prices @ computes.sum(axis=1)

    def holds(self, cost: Matrix) -> bool:
        """Whether a cost is within the budget."""
        return bool((cost <= self.shares + _GAIN).all())


@dataclass(slots=True, kw_only=True)
class PlanSearch:
    """One search. `fixed` [S]: steps at which everything computes. `longest`: steps that an output may stand in, at most."""

    model: ErrorModel
    budget: Budget
    fixed: npt.NDArray[np.bool_]
    longest: int
    computes: Chosen = field(init=False)
    _reused: Matrix = field(init=False)
    _pull: Matrix = field(init=False)
    """[G, S]: half the slope of the error in how strongly a step is moved."""

    def __post_init__(self) -> None:
        num_groups, num_steps = self.model.growth.shape[:2]
        assert self.fixed[0], "the first step computes"
        self.computes = np.ones((num_groups, num_steps), dtype=np.bool_)
        self._reused = np.zeros((num_groups, num_steps))
        self._pull = np.zeros((num_groups, num_steps))

    def run(self) -> Chosen:
        """Returns where each group computes. Raises ValueError for a budget that nothing meets."""
        while not self.budget.holds(self.budget.cost(self.computes)):
            toggle = self._cheapest_to_drop()
            if toggle is None:
                least = self.budget.cost(self.computes)
                raise ValueError(
                    f"no plan computes at most {_percent(self.budget.shares)}; the least that keeps no output for more than "
                    f"{self.longest} steps computes {_percent(least)}"
                )
            self._toggle(*toggle)
        while self._exchange():
            pass
        return self.computes

    def _cheapest_to_drop(self) -> tuple[int, int] | None:
        over = np.maximum(self.budget.cost(self.computes) - self.budget.shares, 0.0)
        best: tuple[float, tuple[int, int]] | None = None
        for group, step in self._toggles(computing=True):
            # Only what brings a share that is still too large down counts as saved.
            saved = float(np.minimum(self.budget.prices[:, group], over).sum())
            if saved > 0:
                change = self._change(group, step)
                # What lowers the error goes first, however little it saves.
                worth = change / saved if change > 0 else change
                if best is None or worth < best[0]:
                    best = worth, (group, step)
        return None if best is None else best[1]

    def _exchange(self) -> bool:
        # Does the best of: a computation more where the budget allows it; one computation for another.
        adds = sorted((self._change(*toggle), toggle) for toggle in self._toggles(computing=False))[:EXCHANGED]
        cost = self.budget.cost(self.computes)
        best: tuple[float, tuple[tuple[int, int], ...]] | None = None
        error = self._error()
        for change, (group, step) in adds:
            if change < -_GAIN * error and self.budget.holds(cost + self.budget.prices[:, group]):
                best = (change, ((group, step),))
                break
        for _, added in adds:
            self._toggle(*added)
            drops = sorted((self._change(*toggle), toggle) for toggle in self._toggles(computing=True))[:EXCHANGED]
            for _, dropped in drops:
                fits = self.budget.holds(cost + self.budget.prices[:, added[0]] - self.budget.prices[:, dropped[0]])
                change = self._change(*dropped) + self._error() - error
                if fits and change < -_GAIN * error and (best is None or change < best[0]):
                    best = change, (added, dropped)
            self._toggle(*added)
        if best is None:
            return False
        for toggle in best[1]:
            self._toggle(*toggle)
        return True

    def _toggles(self, *, computing: bool) -> Iterator[tuple[int, int]]:
        for group, row in enumerate(self.computes):
            for step in np.flatnonzero((row == computing) & ~self.fixed):
                if not computing or self._gap_without(row, int(step)) <= self.longest:
                    yield group, int(step)

    def _gap_without(self, row: npt.NDArray[np.bool_], step: int) -> int:
        # How many steps the output before `step` stands in if `step` does not compute.
        before = step - 1 - int(np.argmax(row[:step][::-1]))
        later = row[step + 1 :]
        after = step + 1 + int(np.argmax(later)) if later.any() else len(row)
        return after - before - 1

    def _moved(self, group: int, step: int) -> Matrix:
        row = self.computes[group].copy()
        row[step] = not row[step]
        return self.model.reused(group, row) - self._reused[group]

    def _change(self, group: int, step: int) -> float:
        moved = self._moved(group, step)
        own = self.model.effects[group, :, group, :]
        return float(2 * moved @ self._pull[group] + moved @ own @ moved)

    def _toggle(self, group: int, step: int) -> None:
        moved = self._moved(group, step)
        self._pull += self.model.effects[:, :, group, :] @ moved
        self._reused[group] += moved
        self.computes[group, step] = not self.computes[group, step]

    def _error(self) -> float:
        return float((self._reused * self._pull).sum())


def _percent(shares: Matrix) -> str:
    return " and ".join(f"{share:.1%}" for share in shares)
