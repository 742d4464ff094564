"""The search over passes and sites: at which steps the model runs at all, and what its sites compute at these."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pab.calibration.search import Budget, Chosen, ErrorModel, Matrix, PlanSearch, Steps

_DIVISIONS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSteps:
    """`passes` [S]: where the model runs. `computes` [G, S]: where each group of sites does. `error`: predicted, squared."""

    passes: Steps
    computes: Chosen
    error: float


def search_passes_and_sites(
    model: ErrorModel, budget: Budget, *, fixed: Steps, longest: int, reuses: str
) -> FoundSteps:  # fmt: skip
    """Returns the plan of least predicted error. The model's last group is the whole pass; prices are those of the others.

    Several splits of the saving between left-out passes and reused sites are tried. Raises ValueError for a
    budget that nothing meets.
    """
    assert reuses in ("all", "passes", "sites"), reuses
    least = min(1.0, float(budget.shares.min()))
    shares = [1.0] if reuses == "sites" else [least] if reuses == "passes" else np.linspace(least, 1.0, _DIVISIONS)
    found: list[FoundSteps] = []
    refused: ValueError | None = None
    for share in shares:
        try:
            found.append(_with_passes(model, budget, float(share), fixed=fixed, longest=longest))
        except ValueError as error:
            refused = error
    if refused is not None and not found:
        raise refused
    return min(found, key=lambda steps: steps.error)


def _with_passes(model: ErrorModel, budget: Budget, share: float, *, fixed: Steps, longest: int) -> FoundSteps:
    num_steps = model.growth.shape[1]
    of_passes = Budget(prices=np.array([[1 / num_steps]]), shares=np.array([share]))
    passes = PlanSearch(model=model.of_last(), budget=of_passes, fixed=fixed, longest=longest).run()[0]
    prices: Matrix = np.concatenate([budget.prices, np.zeros((len(budget.prices), 1))], axis=1)
    sites = PlanSearch(
        model=model,
        budget=Budget(prices=prices, shares=budget.shares),
        fixed=fixed,
        longest=longest,
        passes=passes,
    )
    computes = sites.run()[:-1]
    return FoundSteps(passes=passes, computes=computes, error=sites.error)


def sites_within(
    model: ErrorModel, budget: Budget, passes: Steps, *, fixed: Steps, longest: int
) -> Chosen:  # fmt: skip
    """Returns [G, S]: where sites compute in passes that are decided, for the least movement by their reuse alone.

    The model's last group, the whole pass, moves nothing here. Raises ValueError for a budget that nothing meets.
    """
    effects = model.effects.copy()
    effects[-1], effects[:, :, -1] = 0.0, 0.0
    prices: Matrix = np.concatenate([budget.prices, np.zeros((len(budget.prices), 1))], axis=1)
    search = PlanSearch(
        model=ErrorModel(effects=effects, growth=model.growth),
        budget=Budget(prices=prices, shares=budget.shares),
        fixed=fixed,
        longest=longest,
        passes=passes,
    )
    return search.run()[:-1]
