"""What a run has cost so far, in GPU-hours and in money, and its budget. Nothing here is part of any digest.

The GPU-seconds of a job are what its drivers have counted while it ran, or what its report says, whichever is more: a job
without a driver is in its report only, and a start that was killed is with its driver only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.reports.report_energy import energy_summary, joules_text
from jobs.store.bucket import Bucket
from pipeline.exits import BudgetError
from pipeline.run.jobs_file import StartedJobs, read_submits
from pipeline.run.settings import MachineSettings

HOUR_S = 3600.0
WARN_AT = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """`per_gpu_hour`: in any currency. `budget`: in that currency, or in GPU-hours where no price is given."""

    per_gpu_hour: float | None = None
    budget: float | None = None

    @property
    def budget_gpu_s(self) -> float | None:
        """The budget in GPU-seconds; None if there is none."""
        return None if self.budget is None else HOUR_S * self.budget / (self.per_gpu_hour or 1.0)

    def amount(self, gpu_s: float) -> str:
        """Writes what so many GPU-seconds cost: `1.2 GPU-hours (3.00 at 2.5 a GPU-hour)`."""
        hours = f"{number(gpu_s / HOUR_S)} GPU-hours"
        if self.per_gpu_hour is None:
            return hours
        return f"{hours} ({number(gpu_s / HOUR_S * self.per_gpu_hour)} at {self.per_gpu_hour:g} a GPU-hour)"

    @property
    def budget_text(self) -> str:
        """The budget with its unit."""
        unit = (
            " GPU-hours"
            if self.per_gpu_hour is None
            else f", which is {number((self.budget_gpu_s or 0) / HOUR_S)} GPU-hours"
        )
        return f"{self.budget:g}{unit}"


def prices_of(machines: MachineSettings) -> Prices:
    """Returns what a submit said of prices."""
    return Prices(per_gpu_hour=machines.price_per_gpu_hour, budget=machines.budget)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a driver may still spend. `before_s`: GPU-seconds that earlier submits of the run have spent."""

    prices: Prices
    before_s: float

    def share(self, now_s: float) -> float:
        """Returns which share of the budget is spent, with `now_s` GPU-seconds of this submit; 0 without a budget."""
        limit = self.prices.budget_gpu_s
        return (self.before_s + now_s) / limit if limit else 0.0

    def refuse_if_spent(self) -> None:
        """Raises BudgetError before anything is started."""
        if self.share(0.0) >= 1:
            raise BudgetError(f"{self.told(0.0)}, so nothing is started; submit again with a higher --budget to go on")

    def told(self, now_s: float) -> str:
        """Says how much of the budget is spent."""
        amount = self.prices.amount(self.before_s + now_s)
        return f"{self.share(now_s):.0%} of the budget of {self.prices.budget_text} is spent: {amount}"


def number(value: float) -> str:
    """Writes an amount with two digits behind the point, or with two that count if it is small."""
    return f"{value:,.2f}" if value >= 1 or not value else f"{value:.2g}"


def spent_s(submits: Iterable[StartedJobs], reports: Iterable[Mapping[str, Any]]) -> float:
    """Returns the GPU-seconds that a run has spent."""
    driven: dict[str, float] = {}
    for submit in submits:
        for name, seconds in submit.gpu_s:
            driven[name] = driven.get(name, 0.0) + seconds
    reported = {str(report["job"]): _seconds(report["throughput"]["gpu_seconds"]) for report in reports}
    return sum(max(driven.get(name, 0.0), reported.get(name, 0.0)) for name in driven.keys() | reported.keys())


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0 else 0.0


def budget_of(bucket: Bucket, prices: Prices) -> Budget:
    """Returns what a submit may spend: reads all job reports, if there is a budget. Raises BucketError."""
    before_s = 0.0 if prices.budget is None else spent_s(read_submits(bucket), bucket.job_reports()[0])
    return Budget(prices=prices, before_s=before_s)


def run_bill(bucket: Bucket, reports: Sequence[Mapping[str, Any]], *, rendered: int) -> dict[str, Any]:
    """Returns what a run has cost, as JSON values, by the price of the latest submit that names one. Raises BucketError.

    `energy`: of the clips in the jobs' reports whose GPUs count it; None if there is none.
    """
    submits = list(read_submits(bucket))
    price = next((each.price_per_gpu_hour for each in reversed(submits) if each.price_per_gpu_hour), None)
    budget = submits[-1].budget if submits else None
    found = bill(spent_s(submits, reports), Prices(per_gpu_hour=price, budget=budget), clips=rendered)
    # A clip may stand in the reports of two jobs.
    rows = {(row["clip_id"], row["digest"]): row.get("joules") for report in reports for row in report.get("clips", ())}
    return found | {"energy": energy_summary({"joules": joules} for joules in rows.values())}


def bill(gpu_s: float, prices: Prices, *, clips: int) -> dict[str, Any]:
    """Returns costs of so many GPU-seconds and clips as JSON values; `cost` is None without a price."""
    hours, price, limit = gpu_s / HOUR_S, prices.per_gpu_hour, prices.budget_gpu_s
    cost = None if price is None else hours * price
    return {
        "gpu_hours": round(hours, 6),
        "gpu_hours_per_clip": round(hours / clips, 6) if clips else None,
        "price_per_gpu_hour": price,
        "cost": None if cost is None else round(cost, 6),
        "cost_per_clip": round(cost / clips, 6) if clips and cost is not None else None,
        "budget": prices.budget,
        "budget_share": round(gpu_s / limit, 4) if limit else None,
    }


def bill_text(found: Mapping[str, Any]) -> str:
    """Writes what `bill` returns in a line."""
    prices = Prices(per_gpu_hour=found["price_per_gpu_hour"], budget=found["budget"])
    text = prices.amount(found["gpu_hours"] * HOUR_S)
    each = found["gpu_hours_per_clip"] if found["cost_per_clip"] is None else found["cost_per_clip"]
    if each is not None:
        text += f", {number(each)}{' GPU-hours' if found['cost_per_clip'] is None else ''} a clip"
    if found["budget_share"] is not None:
        text += f", {found['budget_share']:.0%} of the budget of {prices.budget_text}"
    if energy := found.get("energy"):
        text += f", {joules_text(energy['joules_per_clip'])} a clip (of {energy['clips']:,})"
    return text
