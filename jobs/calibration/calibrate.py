"""Finds a static plan for a family on a user's prompts: measure, search, render to prove it. Drives `pab/calibration`.

Two kinds of prompts: those that are measured and searched on, and held-out ones, which only the plan that was found is
judged by, beside every preset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from jobs.calibration.measuring import Measured, Measuring
from jobs.calibration.plan_quality import PlanQuality, RenderedClips, kind_shares, summary, time_share
from jobs.calibration.work import Work
from pab.broadcast.foresight import ForesightRules
from pab.broadcast.plan import BroadcastPlan
from pab.broadcast.rules import NO_BROADCAST, Rules
from pab.broadcast.step_rules import StepRules
from pab.calibration.changes import Matrix
from pab.calibration.groups import SiteGroup
from pab.calibration.passes_and_sites import search_passes_and_sites, sites_within
from pab.calibration.search import Budget, Chosen, Steps
from pab.calibration.stand_in_search import StandInSearch, StandsIn
from pab.execution.choice import Execution
from pab.execution.compiled import executing
from pab.execution.gpu_here import why_no_gpu
from pab.family import ClipRequest, Family, LoadRequest
from pab.parallel.mesh import NodeGroup
from pab.sampling.denoise import plan_for
from pab.weights.lora import Lora

FOUND = "found"
"""What the plan that was found is called among the presets."""
LONGEST = 3
"""Steps that an output may always stand in; more of them in clips of more steps, up to a third."""
SPLITS = 3
"""Plans of one budget that are tried: with its saving in left-out blocks, and more or less of it in sites."""
HALVINGS = 6
"""Of the interval in which the least share that holds a bound on quality is sought: to 1 or 2 % of the calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is asked of the plan; exactly one of the three.

    `match`: a preset, whose computed share is not exceeded, neither of calls nor of planned time. `computed_share`: of
    both, at most. `min_psnr_db`: the median over clips against the same clips without reuse, at least.
    """

    match: str | None = None
    computed_share: float | None = None
    min_psnr_db: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.match, self.computed_share, self.min_psnr_db) if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"a plan is sought for one target, given are {len(given)}: match, computed_share, min_psnr_db"
            )
        if self.computed_share is not None and not 0 < self.computed_share <= 1:
            raise ValueError(
                f"computed_share={self.computed_share}, allowed above 0 up to 1, a share of the site calls"
            )
        if self.min_psnr_db is not None and not 0 < self.min_psnr_db < 100:
            raise ValueError(f"min_psnr_db={self.min_psnr_db}, allowed above 0 up to 100 dB")

    def __str__(self) -> str:
        if self.match is not None:
            return f"at most what {self.match} computes"
        if self.computed_share is not None:
            return f"at most {self.computed_share:.1%} computed"
        return f"at least {self.min_psnr_db:g} dB"


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRequest:
    """What is calibrated. All requests have one size and number of steps.

    `reuses`: what the plan may reuse: "passes" (predictions of whole passes), "residuals" (these, and residuals of all
    blocks), "sites" (outputs of sites), or "all". `ranges`: into how many ranges of blocks each group is cut.
    `probe_every`: at every which step effects are measured. `presets`: those that are judged beside the plan; None for all.
    """

    family: Family
    weights: str | None
    precision: str
    device: str
    searched: tuple[ClipRequest, ...]
    held_out: tuple[ClipRequest, ...]
    target: Target
    reuses: str = "all"
    ranges: int = 1
    probe_every: int = 2
    max_minutes: float | None = None
    """How long it may take after the model is loaded; what that leaves out is told. None: no bound."""
    loras: tuple[Lora, ...] = ()
    presets: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was found. `searched_psnr_db`: median on the searched prompts; `rows`: on held-out ones, the plan first."""

    request: CalibrationRequest
    measured: Measured
    rules: StepRules
    plan: BroadcastPlan
    searched_psnr_db: float
    rows: tuple[PlanQuality, ...]
    left_out: tuple[str, ...] = ()
    """What the bound on its time left out."""
    unfinished: tuple[str, ...] = ()
    """What was still to be done when this was told; then `rows` may be fewer, or none."""

    @property
    def holds(self) -> bool:
        """Whether the plan keeps the bound on quality on held-out prompts; true where no bound is asked for."""
        bound = self.request.target.min_psnr_db
        return bound is None or self.rows[0].psnr_db.median >= bound

    def to_rows(self) -> list[dict[str, object]]:
        """Returns how the plan and every preset do on held-out prompts, as JSON values; no PSNR means the same frames."""
        return [row.to_dict() for row in self.rows]


@dataclass(slots=True, kw_only=True)
class Calibrator:
    """One calibration. `tell` takes a line for the user about every stage.

    `keep` takes the best plan so far, whenever there is a better one or more is known of it: whatever ends the calibration
    then, what it took its time for is not lost. Raises ValueError where the device that was asked for is not here.
    """

    request: CalibrationRequest
    tell: Callable[[str], None]
    keep: Callable[[Calibration], None] = lambda _found: None
    clips: RenderedClips = field(init=False)
    group: NodeGroup = field(init=False)
    work: Work = field(init=False)
    plain: BroadcastPlan = field(init=False)

    def __post_init__(self) -> None:
        request = self.request
        if request.device == "cuda" and (why := why_no_gpu()) is not None:
            raise ValueError(why)
        device = torch.device("cuda", 0) if request.device == "cuda" else torch.device("cpu")
        self.group = NodeGroup(device=device)
        load = LoadRequest(
            weights=request.weights, precision=request.precision, device=str(device), loras=request.loras
        )
        model = request.family.load(load)
        bound = request.max_minutes
        self.work = Work(tell=self.tell, max_seconds=None if bound is None else 60 * bound)
        self.clips = RenderedClips(
            model=model, family=request.family, precision=request.precision, group=self.group, computed=self.work.add
        )
        self.plain = plan_for(request.family, request.searched[0], NO_BROADCAST, request.precision)

    def run(self) -> Calibration:
        """Measures, searches and judges. Raises ValueError where nothing meets the target."""
        with executing(Execution(), precision=self.request.precision):
            return self._run()

    def _run(self) -> Calibration:
        if self.request.target.min_psnr_db is None:
            self._check_shares(self._shares())
        request, work, measuring = self.request, self.work, self._measuring()
        searched, held_out = (self.plain.num_steps * len(each) for each in (request.searched, request.held_out))
        work.reserved = searched + self._proof
        work.expected = measuring.steps_of_work(len(request.searched)) + work.reserved + held_out * len(self._presets)
        work.begin()
        measured = measuring.run(request.searched)
        work.reserved = self._proof
        found = self._bisect(measured) if request.target.min_psnr_db is not None else self._search(measured)
        rules, psnr = found
        self.tell(f"plan {rules.digest}: median {psnr:.1f} dB on the prompts it was searched on")
        rows = [self.clips.quality(FOUND, request.held_out, rules)]
        self.tell(rows[0].line())
        presets = list(self._presets.items())
        for number, (name, each) in enumerate(presets):
            self.keep(self._found(measured, *found, rows, _on_held_out(left for left, _ in presets[number:])))
            if work.allows(held_out):
                rows.append(self.clips.quality(name, request.held_out, each))
                self.tell(rows[-1].line())
            else:
                work.leave_out(_on_held_out([name])[0], held_out)
        return self._found(measured, *found, rows)

    def _found(
        self, measured: Measured, rules: StepRules, psnr_db: float, rows: Sequence[PlanQuality] = (),
        unfinished: Sequence[str] = (),
    ) -> Calibration:  # fmt: skip
        request = self.request
        return Calibration(
            request=request,
            measured=measured,
            rules=rules,
            plan=plan_for(request.family, request.searched[0], rules, request.precision),
            searched_psnr_db=psnr_db,
            rows=tuple(rows),
            left_out=tuple(self.work.left_out),
            unfinished=tuple(unfinished),
        )

    def _keep_unproved(self, measured: Measured, rules: StepRules, psnr_db: float, unfinished: str = "") -> None:
        still = [*filter(None, [unfinished]), "the plan on held-out prompts", *_on_held_out(self._presets)]
        self.keep(self._found(measured, rules, psnr_db, (), still))

    @property
    def _presets(self) -> Mapping[str, Rules]:
        asked = self.request.presets
        return {
            name: rules
            for name, rules in self.request.family.presets.items()
            if rules != NO_BROADCAST and (asked is None or name in asked)
        }

    @property
    def _proof(self) -> float:
        # Steps of work: each held-out clip without reuse, and by the plan.
        return 2.0 * self.plain.num_steps * len(self.request.held_out)

    def measure(self) -> Measured:
        """Renders each searched prompt once to see its changes and what would stand in, and probes it."""
        return self._measuring().run(self.request.searched)

    def _measuring(self) -> Measuring:
        request = self.request
        return Measuring(
            model=self.clips.model,
            family=request.family,
            plan=self.plain,
            group=self.group,
            fixed=self._fixed,
            longest=self._longest,
            ranges=request.ranges,
            probe_every=request.probe_every,
            sites=request.reuses in ("all", "sites"),
            residuals=request.reuses in ("all", "residuals"),
            batch=self.clips.batch,
            work=self.work,
            rendered=self.clips.take_without_reuse,
        )

    @property
    def _fixed(self) -> Steps:
        fixed = np.zeros(self.plain.num_steps, dtype=np.bool_)
        fixed[[0, *self.request.family.cache_reset_steps(self.request.searched[0], self.request.precision)]] = True
        return fixed

    @property
    def _longest(self) -> int:
        return max(LONGEST, self.plain.num_steps // 3)

    def _search(self, measured: Measured, time_share: float | None = None) -> tuple[StepRules, float]:
        """Returns the best plan and its median on the searched prompts. `time_share`: of planned time alone."""
        shares = np.array([1.0, time_share]) if time_share is not None else self._shares()
        found = list(self._candidates(measured, shares))
        if not found:
            raise ValueError(f"no plan computes at most {100 * shares.min():.3g}%; ask for more work")
        steps, clips = self.plain.num_steps, self.request.searched
        judged: list[tuple[float, float, int, StepRules]] = []
        for number, rules in enumerate(found, start=1):
            if judged and not self.work.allows(steps * len(clips), reserved=self.work.reserved):
                self.work.leave_out(f"{len(found) - number + 1} of {len(found)} plans that were to be rendered")
                break
            psnr = summary(self.clips.psnr(clips, rules))
            judged.append((psnr.median, psnr.least, -number, rules))
            best = max(judged, key=lambda each: each[:3])
            if time_share is None and best is judged[-1]:
                left = len(found) - number
                self._keep_unproved(measured, best[3], best[0], f"{left} of {len(found)} plans" if left else "")
        return best[3], best[0]

    def _candidates(self, measured: Measured, shares: Matrix) -> Iterator[StepRules]:
        """Yields plans within the budget: by left-out blocks alone, then more passes of which sites reuse."""
        steps, reuses = self.plain.num_steps, self.request.reuses
        budget = Budget(
            prices=call_and_time_prices(self.request.family, measured.groups, steps), shares=shares
        )  # fmt: skip
        if reuses == "sites":
            found = search_passes_and_sites(
                measured.model, budget, fixed=self._fixed, longest=self._longest, reuses=reuses
            )
            yield self._rules(measured, found.passes, found.computes, {})
            return
        # What is expected to move latents least need not: plans of predictions alone are rendered beside those of residuals.
        searches = [
            StandInSearch(
                errors=measured.errors,
                levels=self.plain.timesteps,
                fixed=self._fixed,
                longest=self._longest,
                residuals=residuals,
            )
            for residuals in ((False,) if reuses == "passes" else (True, False))
        ]
        least = int(shares.min() * steps + 1e-9)
        counts = sorted(
            {least + (steps - least) * part // SPLITS for part in range(SPLITS if measured.has_sites else 1)}
        )
        for count, search in [(counts[0], each) for each in searches] + [(each, searches[0]) for each in counts[1:]]:
            try:
                passes = search.run(max(count, int(self._fixed.sum())))
                computes = np.tile(passes.passes, (len(measured.groups), 1))
                if not budget.holds(budget.cost(computes)):
                    computes = sites_within(
                        measured.model, budget, passes.passes, fixed=self._fixed, longest=self._longest
                    )
            except ValueError:
                continue
            yield self._rules(measured, passes.passes, computes, passes.stand_ins)

    def _rules(
        self, measured: Measured, passes: Steps, computes: Chosen, stand_ins: Mapping[int, StandsIn]
    ) -> StepRules:
        groups = tuple(
            group.computing_at(np.flatnonzero(row).tolist())
            for group, row in zip(measured.groups, computes, strict=True)
            if (row != passes).any()
        )
        residual = tuple((step, each) for step, each in sorted(stand_ins.items()) if not isinstance(each, str))
        return StepRules(
            num_steps=len(passes),
            groups=groups,
            passes=None if passes.all() else tuple(np.flatnonzero(passes).tolist()),
            family=self.request.family.name,
            residual=residual,
        )

    def _shares(self) -> Matrix:
        target, request = self.request.target, self.request
        if target.match is None:
            assert target.computed_share is not None, "targets without a share are bisected"
            return np.array([target.computed_share, target.computed_share])
        rules = request.family.presets[target.match]
        if isinstance(rules, ForesightRules):
            raise ValueError(f"match={target.match!r} decides while a clip is rendered; name a preset that is planned")
        plan = plan_for(request.family, request.searched[0], rules, request.precision)
        return np.array([plan.computed_share, time_share(request.family, plan)])

    def _check_shares(self, shares: Matrix) -> None:
        """Raises ValueError, before anything is rendered, for a budget that nothing meets or that saves nothing."""
        steps, match = self.plain.num_steps, self.request.target.match
        least = float(self._fixed.mean())
        if shares.min() < least:
            raise ValueError(
                f"no plan computes at most {100 * shares.min():.3g}%: of {steps} steps every plan computes "
                f"{self._fixed.sum()}, {least:.1%}; ask for more work"
            )
        if match is not None and shares.min() >= 1:
            raise ValueError(
                f"match={match!r} computes everything in clips of {steps} steps, so a plan for its work saves nothing; ask "
                "for a share (--computed-share 0.6), or calibrate clips of more steps"
            )

    def _bisect(self, measured: Measured) -> tuple[StepRules, float]:
        # Returns the plan of the least planned time that holds the bound on the searched prompts, and its median there.
        bound, work = self.request.target.min_psnr_db, self.work
        assert bound is not None, "only a bound on quality is bisected"
        too_little, enough, found = 0.0, 1.0, (self._nothing_left_out(), float("inf"))
        rendering = self.plain.num_steps * len(self.request.searched)
        for halving in range(HALVINGS):
            if not work.allows(rendering, reserved=work.reserved):
                work.leave_out(f"{HALVINGS - halving} of {HALVINGS} halvings of the work")
                break
            share = (too_little + enough) / 2
            try:
                rules, psnr = self._search(measured, share)
            except ValueError:
                too_little = share
                continue
            self.tell(f"{share:.1%} of the planned time: median {psnr:.1f} dB")
            if psnr >= bound:
                enough, found = share, (rules, psnr)
                self._keep_unproved(measured, *found, f"{HALVINGS - halving - 1} of {HALVINGS} halvings of the work")
            else:
                too_little = share
        return found

    def _nothing_left_out(self) -> StepRules:
        return StepRules(num_steps=self.plain.num_steps, groups=(), family=self.request.family.name)


def _on_held_out(presets: Iterable[str]) -> list[str]:
    return [f"preset {name} on held-out prompts" for name in presets]


def call_and_time_prices(family: Family, groups: Sequence[SiteGroup], num_steps: int) -> Matrix:
    """Returns [2, G]: what one step of each group is of all calls, and of the planned time of all sites."""
    shares = kind_shares(family)
    of_kind = {kind: sum(len(group.names) for group in groups if group.kind == kind) for kind in shares}
    calls = [len(group.names) / len(family.sites) for group in groups]
    times = [shares.get(group.kind, 0.0) * len(group.names) / of_kind.get(group.kind, 1) for group in groups]
    return np.array([calls, times]) / num_steps
