"""The broadcast plan: for every step and site, whether it computes, or which earlier step's output it reuses.

It is made in plain Python from the noise scheduler's own timesteps before step 0. So it is the same on every rank, it can be
printed before a GPU is asked for, and there is no state to reset.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

from pab.broadcast.few_steps import reuse_limits
from pab.broadcast.foresight import ForesightRules
from pab.broadcast.residual import RESIDUAL_LETTER, RESIDUAL_PATTERN, StandIn, stand_ins
from pab.broadcast.rules import KINDS, Rules
from pab.broadcast.sites import Site
from pab.broadcast.sources import rule_sources, step_sources
from pab.broadcast.step_rules import StepRules

PATTERN_LEGEND = (
    "s spatial, t temporal, c cross attention, m MLP; a dot reuses, a capital computes in some blocks only; "
    "r the residual of all blocks stands in for them"
)
"""What the letters of `BroadcastPlan.patterns` mean."""


@dataclass(frozen=True)
class BroadcastPlan:
    """For every step and site, the step whose output is used.

    `sources[step][i]` is the step whose output of `sites[i]` is used at `step`: `step` itself where the site computes, an
    earlier one where it reuses. At `skipped` steps the model does not run: the last prediction is reused, and no kept output
    of a site is used. At steps with `residuals` it runs without its blocks: kept residuals of them stand in. `held_back`: at
    how many steps something computes although the rules alone would reuse it, because the clip has fewer steps than the
    `full_length` that the rules were made for (`few_steps.py`). `full_share`: the share of calls that a clip of that length
    computes.
    """

    sites: tuple[Site, ...]
    timesteps: tuple[float, ...]
    sources: tuple[tuple[int, ...], ...]
    rules: Rules
    skipped: frozenset[int] = frozenset()
    held_back: int = 0
    full_length: int = 0
    full_share: float = 0.0
    residuals: tuple[tuple[int, StandIn], ...] = ()

    @property
    def num_steps(self) -> int:
        """The number of model calls (some schedulers make more of them than the clip's `num_steps`)."""
        return len(self.timesteps)

    @cached_property
    def index(self) -> dict[str, int]:
        """Site name -> position in `sites`."""
        return {site.name: i for i, site in enumerate(self.sites)}

    @cached_property
    def stand_ins(self) -> dict[int, StandIn]:
        """By step without blocks, the residuals that stand in for them."""
        return dict(self.residuals)

    @cached_property
    def without_blocks(self) -> frozenset[int]:
        """The steps at which no block runs: those without a pass, and those whose pass leaves the blocks out."""
        return self.skipped | self.stand_ins.keys()

    @cached_property
    def residual_uses(self) -> dict[int, int]:
        """Computing step -> the last step at which the residual of its blocks stands in; absent where it never does."""
        return {made: step for step, stand_in in sorted(self.residuals) for made, _ in stand_in.parts}

    @cached_property
    def last_uses(self) -> tuple[dict[int, int], ...]:
        """Per site: computing step -> the last step that reuses its output. Steps whose output is not reused are absent."""
        uses: list[dict[int, int]] = [{} for _ in self.sites]
        for step, row in enumerate(self.sources):
            for i, source in enumerate(row):
                if source != step and step not in self.without_blocks:
                    uses[i][source] = step
        return tuple(uses)

    @cached_property
    def kept_at_once(self) -> int:
        """The largest number of outputs and residuals of one pass that wait between two steps for a later one."""
        changes = [0] * (self.num_steps + 1)
        for uses in (*self.last_uses, self.residual_uses):
            for computed, last in uses.items():
                changes[computed] += 1
                changes[last] -= 1
        return max(accumulate(changes))

    def reuses(self, step: int, site: int) -> bool:
        """Whether this site reuses a kept output at this step."""
        return self.sources[step][site] != step

    def keeps(self, step: int, site: int) -> bool:
        """Whether this site's output of this step is reused later, so it must be kept."""
        return step in self.last_uses[site]

    def is_last_use(self, step: int, site: int) -> bool:
        """Whether this step is the last that reuses this output, so it can be freed after it."""
        return self.last_uses[site].get(self.sources[step][site]) == step

    def computed(self, kind: str) -> int:
        """Returns how many calls of this kind are computed, over all steps and sites."""
        members = [i for i, site in enumerate(self.sites) if site.kind == kind]
        return sum(not self.reuses(step, i) for step in range(self.num_steps) for i in members)

    def total(self, kind: str) -> int:
        """Returns how many calls of this kind there are, over all steps and sites."""
        return self.num_steps * sum(site.kind == kind for site in self.sites)

    @cached_property
    def computed_share(self) -> float:
        """The share of all site calls that are computed."""
        return _computed_share(self.sources)

    @property
    def all_to_alls(self) -> int:
        """All-to-alls of the computed sites on several ranks, over all steps, for one pass per step."""
        return sum(
            site.all_to_alls
            for step in range(self.num_steps)
            for i, site in enumerate(self.sites)
            if not self.reuses(step, i)
        )

    @property
    def all_to_alls_without_broadcast(self) -> int:
        """The number of all-to-alls if every site computed at every step."""
        return self.num_steps * sum(site.all_to_alls for site in self.sites)

    def decisions(self, site: int) -> str:
        """Returns one letter per step.

        C computed, S computed and kept for MLP reuse, B broadcast (reused), - no pass, R residual of all blocks.
        """
        kept = "S" if self.sites[site].kind == "mlp" else "C"
        return "".join(
            "-"
            if step in self.skipped
            else RESIDUAL_LETTER
            if step in self.stand_ins
            else "B"
            if self.reuses(step, site)
            else kept
            if self.keeps(step, site)
            else "C"
            for step in range(self.num_steps)
        )

    @cached_property
    def patterns(self) -> tuple[str, ...]:
        """Per step, which kinds compute: `stcm` all, `..cm` spatial and temporal reused; a capital if only some sites do.

        `r...` where residuals stand in for all blocks.
        """
        return tuple(self._pattern(step) for step in range(self.num_steps))

    def _pattern(self, step: int) -> str:
        letters = self._letters(step)
        if step in self.stand_ins:
            return RESIDUAL_PATTERN + letters[1:]
        if not isinstance(self.rules, ForesightRules) or letters == letters.lower():
            return letters
        # How many blocks compute differs between steps, and so does their time.
        share = sum(source == step for source in self.sources[step]) / len(self.sites)
        return f"{letters} {10 * round(10 * share)}%"

    def _letters(self, step: int) -> str:
        letters = []
        for kind in KINDS:
            members = [i for i, site in enumerate(self.sites) if site.kind == kind]
            reused = sum(self.reuses(step, i) for i in members)
            if members:
                letters.append(kind[0] if reused == 0 else "." if reused == len(members) else kind[0].upper())
        return "".join(letters)

    @cached_property
    def graph_kinds(self) -> frozenset[tuple[object, ...]]:
        """Each different combination of compute, keep and reuse of its blocks: a compiled graph each, which plans share."""
        return frozenset(
            (self.sites[members[0]].stack, *((self.reuses(step, i), self.keeps(step, i)) for i in members))
            for step in set(range(self.num_steps)) - self.without_blocks
            for members in self.blocks
        )

    @property
    def graphs(self) -> int:
        """How many compiled graphs its blocks need."""
        return len(self.graph_kinds)

    @cached_property
    def full_steps(self) -> tuple[int, ...]:
        """The steps at which every site computes."""
        return tuple(step for step, row in enumerate(self.sources) if all(source == step for source in row))

    def warning(self, broadcast: str) -> str | None:
        """Returns what users of a broadcast of this name are told if it reuses less, since there are few steps; else None."""
        nothing = len(self.full_steps) == self.num_steps
        if isinstance(self.rules, StepRules):
            left = "nothing is reused" if nothing else f"{self.computed_share:.0%} of the calls are computed"
            return self._spread_warning(broadcast, left, self.rules)
        if not self.held_back:
            return None
        left = (
            "nothing is reused" if nothing else f"less is reused, {self.computed_share:.0%} of the calls are computed"
        )
        return (
            f"broadcast {broadcast} with {self.num_steps} steps: {left}. Its rules are made for {self.full_length} steps "
            f"({self.full_share:.0%} of the calls). At {self.held_back} steps they alone would reuse more: over a longer "
            "stretch of noise than there, or before the shape is decided; use more steps, or --broadcast none"
        )

    def _spread_warning(self, broadcast: str, left: str, rules: StepRules) -> str | None:
        own = rules.computed_share(self.sites)
        if self.num_steps == rules.num_steps or self.computed_share <= own + 0.01:
            return None
        return (
            f"broadcast {broadcast} with {self.num_steps} steps: {left}, at its own {rules.num_steps} steps {own:.0%}"
        )

    @cached_property
    def digest(self) -> str:
        """Names the plan in records and reports: 12 hex digits over sites, timesteps and sources."""
        content = [[site.name for site in self.sites], list(self.timesteps), [list(row) for row in self.sources]]
        if self.skipped or self.residuals:
            content.append(sorted(self.skipped))
        if self.residuals:
            content.append([[step, *map(list, stand_in.parts)] for step, stand_in in self.residuals])
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]

    def block_decisions(self) -> tuple[tuple[str, str], ...]:
        """Returns, per block in running order, its name and its first site's letters. For plans that decide whole blocks."""
        names = [self.sites[members[0]].name.rpartition(".")[0] for members in self.blocks]
        return tuple((name, self.decisions(members[0])) for name, members in zip(names, self.blocks, strict=True))

    @cached_property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """The sites of each block, blocks and sites in running order."""
        found: dict[tuple[str, int], list[int]] = {}
        for i, site in enumerate(self.sites):
            found.setdefault((site.stack, site.block), []).append(i)
        return tuple(tuple(members) for members in found.values())

    def table(self) -> str:
        """Returns the plan as text: one line per group of sites with the same decisions, one letter per step."""
        groups: dict[tuple[str, str, str], list[int]] = {}
        for i, site in enumerate(self.sites):
            groups.setdefault((site.kind, site.stack if site.kind == "mlp" else "", self.decisions(i)), []).append(i)
        letters = "C compute, S compute and keep, B reuse" + (", - no pass" if self.skipped else "")
        letters += f", {RESIDUAL_LETTER} residual of all blocks" if self.residuals else ""
        lines = [f"{'kind':<14}{'sites':>6}  decisions ({letters})"]
        for (kind, _, decisions), members in groups.items():
            lines.append(f"{self._label(kind, members):<14}{len(members):>6}  {decisions}")
        counts = Counter(self.patterns)
        if isinstance(self.rules, StepRules) and self.rules.num_steps != self.num_steps:
            own = f"a plan for {self.rules.num_steps} steps, spread over {self.num_steps}"
            lines.append(f"{own} so that nothing is reused over a longer way than there")
        lines.append("patterns      " + ", ".join(f"{name} x{count}" for name, count in counts.most_common()))
        lines.append(f"              ({PATTERN_LEGEND})")
        return "\n".join(lines)

    def _label(self, kind: str, members: Sequence[int]) -> str:
        # If a kind has sites in several stacks whose decisions differ, the label names the stack too.
        stacks = {self.sites[i].stack for i in members}
        several = len({site.stack for site in self.sites if site.kind == kind}) > 1
        return f"{kind} {stacks.pop()}" if len(stacks) == 1 and (several or kind == "mlp") else kind


def make_plan(
    rules: Rules,
    timesteps: Sequence[float],
    sites: Sequence[Site],
    *,
    cache_reset_steps: Collection[int] = (),
    full_length: Sequence[float] = (),
) -> BroadcastPlan:
    """Decides every step and site.

    `timesteps`: noise level of each model call as the model gets it (after the cast to its precision). Every site computes
    at its first call, whatever the rules say. A reuse takes the last computed output, which may lie before the window. At
    `cache_reset_steps` every site computes too, and no output from before such a step is reused after it. `full_length`: the
    timesteps of a clip with as many steps as the rules were made for; a clip of fewer steps reuses later, and over no longer
    stretch of noise (`few_steps.py`).

    Under Foresight's rules nothing is decided yet: every site computes in the returned plan, the most that the clip can
    need. Raises ValueError for Foresight's rules with cache reset steps, and for step rules of other sites.
    """
    if isinstance(rules, StepRules):
        left_out = rules.skipped(len(timesteps)) - {*cache_reset_steps}
        weights = {step: w for step, w in rules.residual_weights(len(timesteps)).items() if step in left_out}
        computing = [step for step in range(len(timesteps)) if step not in left_out]
        return BroadcastPlan(
            sites=tuple(sites),
            timesteps=tuple(timesteps),
            sources=step_sources(rules, len(timesteps), sites, skipped=left_out, cache_reset_steps=cache_reset_steps),
            rules=rules,
            skipped=left_out - weights.keys(),
            residuals=tuple(stand_ins(weights, computing, timesteps, cache_reset_steps).items()),
        )
    if isinstance(rules, ForesightRules):
        if cache_reset_steps:
            raise ValueError(
                f"foresight: another model takes over at step {min(cache_reset_steps)}; use a broadcast preset"
            )
        rows = tuple((step,) * len(sites) for step in range(len(timesteps)))
        return BroadcastPlan(sites=tuple(sites), timesteps=tuple(timesteps), sources=rows, rules=rules)
    sources = rule_sources(rules, timesteps, sites, cache_reset_steps)
    plan = BroadcastPlan(sites=tuple(sites), timesteps=tuple(timesteps), sources=sources, rules=rules)
    if len(timesteps) >= len(full_length):
        return plan
    full = rule_sources(rules, full_length, sites, ())
    limits = reuse_limits(timesteps, full_length, full, [site.kind for site in sites])
    if limits is None:
        return plan
    held = rule_sources(rules, timesteps, sites, cache_reset_steps, limits)
    held_back = sum(
        any(source == step != alone for source, alone in zip(row, sources[step], strict=True))
        for step, row in enumerate(held)
    )
    return replace(
        plan,
        sources=held,
        held_back=held_back,
        full_length=len(full_length),
        full_share=_computed_share(full),
    )


def _computed_share(sources: Sequence[Sequence[int]]) -> float:
    calls = sum(map(len, sources))
    return sum(source == step for step, row in enumerate(sources) for source in row) / calls if calls else 1.0
