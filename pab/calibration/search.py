"""The search for a static plan: the steps at which each group computes, for the least error at the end of a clip.

Reusing step s at step t moves the finished latents by the measured effect of reusing step t - 1 there, made larger by as
much as the output differs more. Movements add as vectors, so the error of a plan is a quadratic form in what it reuses.
Least error is sought under a budget: by taking away the computation that costs least error for its price until the budget
holds, then by exchanging computations as long as the error falls, and that again from plans near the best one. Plain numbers;
what is drawn at random is drawn by a seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
Steps = npt.NDArray[np.bool_]
"""[S]: some of the steps."""
Chosen = npt.NDArray[np.bool_]
"""[G, S]: where a group computes."""
Toggle = tuple[int, int]
"""A group and a step that begins or ceases to compute."""
RESTARTS = 12
_SHAKEN = (0.1, 0.7)
_GAIN = 1e-9
_STILL = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorModel:
    """What a plan is predicted to do.

    `effects` [G, S, G, S]: inner products of the movements that two reuses cause. `growth` [G, S, S]: how much further
    than from the step before, in amplitude, the output of step s (row) is from that of step t (column).
    """

    effects: Matrix
    growth: Matrix

    def reused(self, group: int, computes: Steps, made: Steps) -> Matrix:
        """Returns [S]: how strongly each step of a group is moved; 0 where it computes, and where no pass is made."""
        steps = np.arange(len(computes))
        sources = np.maximum.accumulate(np.where(computes, steps, 0))
        return np.where(computes | ~made, 0.0, self.growth[group, sources, steps])

    def of_last(self) -> ErrorModel:
        """Returns the model of the last group alone."""
        return ErrorModel(effects=self.effects[-1:, :, -1:, :], growth=self.growth[-1:])


def error_model(effects: Sequence[Matrix], relative: Matrix) -> ErrorModel:
    """Builds the model from [G, S, n] movements of each clip and the relative change [G, S, S] of all of them.

    Every clip counts the same: its inner products are divided by their sum over single reuses.
    """
    products = []
    for clip in effects:
        product = np.einsum("gsn,htn->gsht", clip, clip, optimize=True)
        products.append(product / max(np.einsum("gsgs->", product), np.finfo(np.float64).tiny))
    steps = np.arange(relative.shape[1])
    # An output that does not change at all moves nothing, however long it stands in.
    neighbours = np.maximum(relative[:, np.maximum(steps - 1, 0), steps], _STILL * relative.max(initial=_STILL))
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
    """One search for where the groups of a model compute.

    `fixed`: steps at which everything computes. `longest`: steps that an output may stand in, at most. `passes`: the steps
    at which the model runs, if they are decided already: they are those of the model's last group, which is then left alone.
    """

    model: ErrorModel
    budget: Budget
    fixed: Steps
    longest: int
    passes: Steps | None = None
    seed: int = 0
    computes: Chosen = field(init=False)
    _reused: Matrix = field(init=False)
    _pull: Matrix = field(init=False)
    """[G, S]: half the slope of the error in how strongly a step is moved."""

    def __post_init__(self) -> None:
        assert self.fixed[0], "the first step computes"
        computes = np.ones(self.model.growth.shape[:2], dtype=np.bool_)
        self._set(computes if self.passes is None else computes & self.passes)

    def run(self) -> Chosen:
        """Returns where each group computes; `error` is then its predicted squared error.

        Raises ValueError for a budget that nothing meets.
        """
        random = np.random.default_rng(self.seed)
        self._descend()
        best, error = self.computes.copy(), self.error
        for _ in range(RESTARTS):
            self._set(self._shaken(best, random))
            self._descend()
            if self.error < error * (1 - _GAIN):
                best, error = self.computes.copy(), self.error
        self._set(best)
        return best

    def _set(self, computes: Chosen) -> None:
        self.computes = computes.copy()
        self._reused = np.stack([self._reuse(group, row) for group, row in enumerate(computes)])
        self._pull = np.einsum("gsht,ht->gs", self.model.effects, self._reused)

    def _shaken(self, computes: Chosen, random: np.random.Generator) -> Chosen:
        # Only begins computing elsewhere: what the budget then drops is up to the error.
        added = random.random(computes.shape) < random.uniform(*_SHAKEN)
        return computes | (added if self.passes is None else added & self.passes & self._free[:, None])

    @property
    def _free(self) -> npt.NDArray[np.bool_]:
        # Which groups the search decides for.
        groups = np.arange(len(self.computes))
        return groups < len(groups) - (self.passes is not None)

    def _reuse(self, group: int, computes: Steps) -> Matrix:
        everywhere = self.passes is None or group == len(self.model.growth) - 1
        made = np.ones_like(computes) if everywhere or self.passes is None else self.passes
        return self.model.reused(group, computes, made)

    def _descend(self) -> None:
        while not self.budget.holds(self.budget.cost(self.computes)):
            toggle = self._cheapest_to_drop()
            if toggle is None:
                least, asked = _percent(self.budget.cost(self.computes)), _percent(self.budget.shares)
                raise ValueError(
                    f"no plan computes at most {asked}; the least that was found to keep no output for more than "
                    f"{self.longest} steps computes {least}"
                )
            self._toggle(toggle)
        while toggles := self._best_exchange():
            for toggle in toggles:
                self._toggle(toggle)

    def _cheapest_to_drop(self) -> Toggle | None:
        over = np.maximum(self.budget.cost(self.computes) - self.budget.shares, 0.0)
        worths: list[tuple[float, Toggle]] = []
        for toggle in self._toggles(computing=True):
            # Only what brings a share that is still too large down counts as saved.
            saved = float(np.minimum(self.budget.prices[:, toggle[0]], over).sum())
            change = self._change(toggle)
            if saved > 0:
                # What lowers the error goes first, however little it saves.
                worths.append((change / saved if change > 0 else change, toggle))
        return min(worths)[1] if worths else None

    def _best_exchange(self) -> tuple[Toggle, ...]:
        # Returns what lowers the error most: one computation more, where the budget allows it, or one instead of another.
        adds, drops = list(self._toggles(computing=False)), list(self._toggles(computing=True))
        cost, prices = self.budget.cost(self.computes), self.budget.prices
        found = [
            (self._change(add), (add,)) for add in adds if self.budget.holds(cost + prices[:, add[0]])
        ] + [*self._within_groups(adds), *self._between_groups(adds, drops)]  # fmt: skip
        change, toggles = min(found, default=(0.0, ()))
        return toggles if change < -_GAIN * self.error else ()

    def _within_groups(self, adds: Sequence[Toggle]) -> Iterator[tuple[float, tuple[Toggle, ...]]]:
        for add in adds:
            before = self.error
            self._toggle(add)
            begun = self.error - before
            changes = [
                (begun + self._change(drop), (add, drop))
                for drop in self._toggles(computing=True, groups=(add[0],))
                if drop != add
            ]
            self._toggle(add)
            if changes:
                yield min(changes)

    def _between_groups(
        self, adds: Sequence[Toggle], drops: Sequence[Toggle]
    ) -> Iterator[tuple[float, tuple[Toggle, ...]]]:  # fmt: skip
        if not adds or not drops:
            return
        # Toggles of different groups move different steps, so that the error of both is known from their products.
        effects = self.model.effects.reshape(self.computes.size, -1)
        added, dropped = (np.stack([self._moved_everywhere(toggle) for toggle in side]) for side in (adds, drops))
        changes = 2 * added @ effects @ dropped.T
        changes += np.array([self._change(add) for add in adds])[:, None]
        changes += np.array([self._change(drop) for drop in drops])
        add_groups, drop_groups = (np.array([group for group, _ in side]) for side in (adds, drops))
        cost, prices = self.budget.cost(self.computes), self.budget.prices
        costs = cost[:, None, None] + prices[:, add_groups][:, :, None] - prices[:, drop_groups][:, None, :]
        fits = (costs <= self.budget.shares[:, None, None] + _GAIN).all(axis=0)
        changes[~fits | (add_groups[:, None] == drop_groups)] = np.inf
        add, drop = divmod(int(np.argmin(changes)), len(drops))
        yield float(changes[add, drop]), (adds[add], drops[drop])

    def _toggles(self, *, computing: bool, groups: Iterable[int] | None = None) -> Iterator[Toggle]:
        allowed = ~self.fixed if self.passes is None else ~self.fixed & self.passes
        for group in np.flatnonzero(self._free).tolist() if groups is None else groups:
            row = self.computes[group]
            for step in np.flatnonzero((row == computing) & allowed):
                if not computing or self._gap_without(row, int(step)) <= self.longest:
                    yield group, int(step)

    @staticmethod
    def _gap_without(row: Steps, step: int) -> int:
        # How many steps the output before `step` stands in if `step` does not compute.
        before = step - 1 - int(np.argmax(row[:step][::-1]))
        later = row[step + 1 :]
        after = step + 1 + int(np.argmax(later)) if later.any() else len(row)
        return after - before - 1

    def _moved(self, toggle: Toggle) -> Matrix:
        group, step = toggle
        row = self.computes[group].copy()
        row[step] = not row[step]
        return self._reuse(group, row) - self._reused[group]

    def _moved_everywhere(self, toggle: Toggle) -> Matrix:
        moved = np.zeros(self.computes.shape)
        moved[toggle[0]] = self._moved(toggle)
        return moved.ravel()

    def _change(self, toggle: Toggle) -> float:
        moved, group = self._moved(toggle), toggle[0]
        own = self.model.effects[group, :, group, :]
        return float(2 * moved @ self._pull[group] + moved @ own @ moved)

    def _toggle(self, toggle: Toggle) -> None:
        group, step = toggle
        moved = self._moved(toggle)
        self._pull += self.model.effects[:, :, group, :] @ moved
        self._reused[group] += moved
        self.computes[group, step] = not self.computes[group, step]

    @property
    def error(self) -> float:
        """The predicted squared error of the plan as it stands."""
        return float((self._reused * self._pull).sum())


def _percent(shares: Matrix) -> str:
    return " and ".join(f"{share:.1%}" for share in shares)
