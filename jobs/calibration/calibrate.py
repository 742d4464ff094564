"""Finds a static plan for a family on a user's prompts: measure, search, render to prove it. Drives `pab/calibration`.

Two kinds of prompts: those that are measured and searched on, and held-out ones, which only the plan that was found is
judged by, beside every preset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from jobs.calibration.plan_quality import PlanQuality, RenderedClips, call_share, kind_shares, summary, time_share
from pab.broadcast.foresight import ForesightRules
from pab.broadcast.plan import BroadcastPlan
from pab.broadcast.rules import NO_BROADCAST
from pab.broadcast.step_rules import StepRules
from pab.calibration.changes import Changes, Matrix, mean_changes
from pab.calibration.effects import measure_clip, measure_effect, spread_effects
from pab.calibration.groups import WHOLE_PASS, SiteGroup, site_groups
from pab.calibration.passes_and_sites import search_passes_and_sites
from pab.calibration.search import Budget, ErrorModel, Steps, error_model
from pab.execution.choice import Execution
from pab.execution.compiled import executing
from pab.family import ClipRequest, Family, LoadRequest
from pab.parallel.mesh import NodeGroup
from pab.sampling.denoise import plan_for
from pab.weights.lora import Lora

FOUND = "found"
"""What the plan that was found is called among the presets."""
LONGEST = 3
"""Steps that an output may always stand in; more of them in clips of more steps, up to a third."""
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

    `reuses`: what the plan may reuse, of REUSES. `ranges`: into how many ranges of blocks each group is cut. `probe_every`:
    at every which step effects are measured.
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
    loras: tuple[Lora, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured on the searched prompts, by group and step. `effects` [G + 1, S]: root mean square movement.

    Behind the groups of sites stands the whole pass.
    """

    groups: tuple[SiteGroup, ...]
    changes: Changes
    effects: Matrix
    model: ErrorModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was found. `searched_psnr_db`: median on the searched prompts; `rows`: on held-out ones, the plan first."""

    request: CalibrationRequest
    measured: Measured
    rules: StepRules
    plan: BroadcastPlan
    searched_psnr_db: float
    rows: tuple[PlanQuality, ...]

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
    """One calibration. `tell` takes a line for the user about every stage."""

    request: CalibrationRequest
    tell: Callable[[str], None]
    clips: RenderedClips = field(init=False)
    group: NodeGroup = field(init=False)

    def __post_init__(self) -> None:
        request = self.request
        device = torch.device("cuda", 0) if request.device == "cuda" else torch.device("cpu")
        self.group = NodeGroup(device=device)
        load = LoadRequest(
            weights=request.weights, precision=request.precision, device=str(device), loras=request.loras
        )
        model = request.family.load(load)
        self.clips = RenderedClips(
            model=model, family=request.family, precision=request.precision, group=self.group
        )  # fmt: skip

    def run(self) -> Calibration:
        """Measures, searches and judges. Raises ValueError where nothing meets the target."""
        with executing(Execution(), precision=self.request.precision):
            return self._run()

    def _run(self) -> Calibration:
        request, measured = self.request, self.measure()
        rules = self._bisect(measured) if request.target.min_psnr_db is not None else self._search(measured)
        psnr = summary(self.clips.psnr(request.searched, rules)).median
        self.tell(f"plan {rules.digest}: {psnr:.1f} dB on the prompts it was searched on")
        named = {FOUND: rules, **{n: r for n, r in request.family.presets.items() if r != NO_BROADCAST}}
        rows = []
        for name, each in named.items():
            rows.append(self.clips.quality(name, request.held_out, each))
            self.tell(rows[-1].line())
        return Calibration(
            request=request,
            measured=measured,
            rules=rules,
            plan=plan_for(request.family, request.searched[0], rules, request.precision),
            searched_psnr_db=psnr,
            rows=tuple(rows),
        )

    def measure(self) -> Measured:
        """Renders each searched prompt once to see its changes, and from step to step again to see what reuse does."""
        request = self.request
        groups = site_groups(request.family.sites, ranges=request.ranges)
        changes: list[Changes] = []
        effects: list[Matrix] = []
        for number, clip_request in enumerate(request.searched, start=1):
            self.tell(f"measuring clip {number} of {len(request.searched)}: {clip_request.prompt}")
            changes_of, effects_of = self._measure_clip(clip_request, groups)
            changes.append(changes_of)
            effects.append(effects_of)
        mean = mean_changes(changes)
        sizes = np.mean([np.sqrt(np.square(clip).mean(axis=2)) for clip in effects], axis=0)
        return Measured(
            groups=groups, changes=mean, effects=sizes, model=error_model(effects, mean.relative)
        )  # fmt: skip

    def _measure_clip(self, request: ClipRequest, groups: Sequence[SiteGroup]) -> tuple[Changes, Matrix]:
        plan = plan_for(self.request.family, request, NO_BROADCAST, self.request.precision)
        clip = measure_clip(self.clips.model, request, groups, plan, group=self.group)
        fixed = self._fixed(request, plan.num_steps)
        steps = [step for step in range(1, plan.num_steps, self.request.probe_every) if not fixed[step]]
        effects = []
        neighbours = clip.changes.neighbours
        for group, change in zip((*groups, WHOLE_PASS), neighbours, strict=True):
            probed = {step: measure_effect(self.clips.model, clip, group, step, group=self.group) for step in steps}
            effects.append(spread_effects(probed, change))
            self.tell(f"  {group.label}: one reuse moves latents by {_rms(probed)} (least to most)")
        return clip.changes, np.stack(effects)

    def _fixed(self, request: ClipRequest, num_steps: int) -> Steps:
        fixed = np.zeros(num_steps, dtype=np.bool_)
        fixed[[0, *self.request.family.cache_reset_steps(request, self.request.precision)]] = True
        return fixed

    def _search(self, measured: Measured, time_share: float | None = None) -> StepRules:
        # `time_share`: of planned time alone; None for what the target says.
        family, first = self.request.family, self.request.searched[0]
        num_steps = measured.effects.shape[1]
        prices = call_and_time_prices(family, measured.groups, num_steps)
        shares = np.array([1.0, time_share]) if time_share is not None else self._shares()
        found = search_passes_and_sites(
            measured.model,
            Budget(prices=prices, shares=shares),
            fixed=self._fixed(first, num_steps),
            longest=max(LONGEST, num_steps // 3),
            reuses=self.request.reuses,
        )
        groups = tuple(
            group.computing_at(np.flatnonzero(row).tolist())
            for group, row in zip(measured.groups, found.computes, strict=True)
            if (row != found.passes).any()
        )
        passes = None if found.passes.all() else tuple(np.flatnonzero(found.passes).tolist())
        return StepRules(num_steps=num_steps, groups=groups, passes=passes, family=family.name)

    def _shares(self) -> Matrix:
        target, request = self.request.target, self.request
        if target.match is None:
            assert target.computed_share is not None, "targets without a share are bisected"
            return np.array([target.computed_share, target.computed_share])
        rules = request.family.presets[target.match]
        if isinstance(rules, ForesightRules):
            raise ValueError(f"match={target.match!r} decides while a clip is rendered; name a preset that is planned")
        plan = plan_for(request.family, request.searched[0], rules, request.precision)
        return np.array([call_share(plan), time_share(request.family, plan)])

    def _bisect(self, measured: Measured) -> StepRules:
        # Returns the plan of the least planned time that holds the bound on the searched prompts.
        bound = self.request.target.min_psnr_db
        assert bound is not None, "only a bound on quality is bisected"
        too_little, enough, found = 0.0, 1.0, self._search(measured, 1.0)
        for _ in range(HALVINGS):
            share = (too_little + enough) / 2
            try:
                rules = self._search(measured, share)
            except ValueError:
                too_little = share
                continue
            psnr = summary(self.clips.psnr(self.request.searched, rules)).median
            self.tell(f"{share:.1%} of the planned time: {psnr:.1f} dB")
            if psnr >= bound:
                enough, found = share, rules
            else:
                too_little = share
        return found


def call_and_time_prices(family: Family, groups: Sequence[SiteGroup], num_steps: int) -> Matrix:
    """Returns [2, G]: what one step of each group is of all calls, and of the planned time of all sites."""
    shares = kind_shares(family)
    of_kind = {kind: sum(len(group.names) for group in groups if group.kind == kind) for kind in shares}
    calls = [len(group.names) / len(family.sites) for group in groups]
    times = [shares.get(group.kind, 0.0) * len(group.names) / of_kind.get(group.kind, 1) for group in groups]
    return np.array([calls, times]) / num_steps


def _rms(probed: Mapping[int, Tensor]) -> str:
    sizes = [float(effect.square().mean().sqrt()) for effect in probed.values()]
    return f"{min(sizes):.1e} to {max(sizes):.1e}"
