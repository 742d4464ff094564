"""The search for the steps whose blocks are left out, and for what stands in at each: a prediction or residuals.

An error of a prediction moves the finished latents by the gain of its step; movements add up as vectors. Of all that may
stand in at a step, what leaves the least movement together with the steps before is taken. The steps are found by leaving
out the one that costs least until enough are left out, then by exchanges while the movement falls, and that again from plans
near the best one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pab.broadcast.residual import KEPT, Weights
from pab.calibration.changes import Matrix
from pab.calibration.reference import StandInErrors
from pab.calibration.search import Steps

PREDICTION = "prediction"
"""The last prediction stands in."""
StandsIn = str | Weights
RESTARTS = 3
_SHAKEN = 0.2
_GAIN = 1e-9
_RIDGE = 1e-3
_DIGITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPasses:
    """The steps at which the blocks run, what stands in at each other step, and the squared movement that is expected."""

    passes: Steps
    stand_ins: Mapping[int, StandsIn]
    error: float


@dataclass(slots=True, kw_only=True)
class StandInSearch:
    """One search. `fixed`: steps whose blocks run. `longest`: steps in a row that are left out, at most.

    No residual from before a fixed step is used after it, for another transformer may take over there.
    `residuals`: whether residuals may stand in; else predictions alone do.
    """

    errors: StandInErrors
    levels: Sequence[float]
    fixed: Steps
    longest: int
    residuals: bool = True
    seed: int = 0
    _weights: dict[tuple[int, int, int | None], list[Weights]] = field(default_factory=dict)

    def run(self, count: int) -> FoundPasses:
        """Returns the best steps of which `count` run their blocks. Raises ValueError where so few are not enough."""
        random = np.random.default_rng(self.seed)
        passes = self._descended(np.ones(len(self.levels), dtype=np.bool_), count)
        best = self.judge(passes)
        for _ in range(RESTARTS):
            shaken = best.passes | (random.random(len(self.levels)) < _SHAKEN)
            found = self.judge(self._descended(shaken, count))
            if found.error < best.error * (1 - _GAIN):
                best = found
        return best

    def _descended(self, passes: Steps, count: int) -> Steps:
        passes = passes.copy()
        while passes.sum() > count:
            drops = [(self.judge(self._without(passes, step)).error, step) for step in self._droppable(passes)]
            if not drops:
                raise ValueError(
                    f"no plan runs the blocks at {count} of {len(passes)} steps and leaves no more than {self.longest} in a "
                    f"row out; the least that was found runs {passes.sum()}"
                )
            passes = self._without(passes, min(drops)[1])
        error = self.judge(passes).error
        while True:
            exchanged = [(self.judge(each).error, number, each) for number, each in enumerate(self._exchanges(passes))]
            if not exchanged or min(exchanged, key=lambda e: e[:2])[0] >= error * (1 - _GAIN):
                return passes
            error, _, passes = min(exchanged, key=lambda e: e[:2])

    def _exchanges(self, passes: Steps) -> Iterator[Steps]:
        # A step that runs its blocks moves to a place between its neighbours: others hardly feel it.
        made = [*np.flatnonzero(passes).tolist(), len(passes)]
        for i in range(1, len(made) - 1):
            if self.fixed[made[i]]:
                continue
            for step in range(made[i - 1] + 1, made[i + 1]):
                moved = self._without(passes, made[i])
                moved[step] = True
                if step != made[i] and self._gaps_hold(moved):
                    yield moved

    def _droppable(self, passes: Steps) -> Iterator[int]:
        for step in np.flatnonzero(passes & ~self.fixed).tolist():
            if self._gaps_hold(self._without(passes, step)):
                yield step

    def _gaps_hold(self, passes: Steps) -> bool:
        made = np.append(np.flatnonzero(passes), len(passes))
        return bool((np.diff(made) - 1).max(initial=0) <= self.longest)

    @staticmethod
    def _without(passes: Steps, step: int) -> Steps:
        passes = passes.copy()
        passes[step] = False
        return passes

    def judge(self, passes: Steps) -> FoundPasses:
        """Returns what stands in at every step that is left out, and the movement of all of them."""
        errors = self.errors
        moved = np.zeros(errors.guided.shape[1], dtype=np.float64)
        last, before = 0, None
        missed: Matrix | None = None
        found: dict[int, StandsIn] = {}
        for step in range(len(passes)):
            if passes[step]:
                before = None if self.fixed[step] else last
                last, missed = step, None
                continue
            options: list[tuple[float, int, StandsIn, Matrix]] = []
            for number, (stands_in, miss) in enumerate(self._options(step, last, before, missed)):
                after = moved + errors.gain[step] * miss
                options.append((float(after @ after), number, stands_in, miss))
            _, _, found[step], missed = min(options, key=lambda option: option[:2])
            moved = moved + errors.gain[step] * missed
        return FoundPasses(passes=passes, stand_ins=found, error=float(moved @ moved))

    def _options(
        self, step: int, last: int, before: int | None, missed: Matrix | None
    ) -> Iterator[tuple[StandsIn, Matrix]]:
        guided = self.errors.guided
        yield PREDICTION, guided[step - 1] - guided[step] + (0.0 if missed is None else missed)
        window = self.errors.kept.shape[1]
        if not self.residuals or step - last > window:
            return
        if before is not None and step - before > window:
            before = None
        whole, of_last = self.errors.whole[step], self._given(step, last)
        of_before = None if before is None else self._given(step, before)
        for weights in self._weights_at(step, last, before):
            if len(weights) == 1:
                yield weights, weights[0] * of_last - whole
            elif of_before is not None:
                assert before is not None, "its residual is known"
                numbers = weights or self._line(step, last, before)
                yield weights, numbers[0] * of_last + numbers[1] * of_before - whole

    def _given(self, step: int, made: int) -> Matrix:
        # What a kept residual gives at a step: what its own gives, and what is missed.
        return self.errors.whole[step] + self.errors.kept[step, step - made - 1]

    def _line(self, step: int, last: int, before: int) -> Weights:
        far = self.levels[last] - self.levels[before]
        ahead = (self.levels[step] - self.levels[last]) / far if far else 0.0
        return 1 + ahead, -ahead

    def _weights_at(self, step: int, last: int, before: int | None) -> list[Weights]:
        key = step, last, before
        if key not in self._weights:
            whole, of_last = self.errors.whole[step], self._given(step, last)
            found: list[Weights] = [KEPT, (_rounded(whole @ of_last / max(of_last @ of_last, 1e-30)),)]
            if before is not None:
                both = np.stack([of_last, self._given(step, before)])
                products = both @ both.T
                # Two residuals are much alike: without a ridge, large weights of both would fit these clips alone.
                products[[0, 1], [0, 1]] += _RIDGE * np.trace(products) / 2
                start = np.array(self._line(step, last, before))
                change = np.linalg.solve(products, both @ (whole - start @ both))
                found += [(), (_rounded(start[0] + change[0]), _rounded(start[1] + change[1]))]
            self._weights[key] = found
        return self._weights[key]


def _rounded(value: float) -> float:
    return round(float(value), _DIGITS)
