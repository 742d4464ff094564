"""Where every site's output of a step comes from, by rules and by plans told step by step (`BroadcastPlan.sources`)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pab.broadcast.few_steps import ReuseLimits
from pab.broadcast.mlp_rules import mlp_sources
from pab.broadcast.rules import BroadcastRules
from pab.broadcast.sites import Site
from pab.broadcast.step_rules import StepRules


def rule_sources(
    rules: BroadcastRules,
    timesteps: Sequence[float],
    sites: Sequence[Site],
    cache_reset_steps: Collection[int],
    limits: ReuseLimits | None = None,
) -> tuple[tuple[int, ...], ...]:
    """Returns what the rules decide, within the limits of a clip of few steps."""
    whole = [int(timestep) for timestep in timesteps]
    of_mlp = mlp_sources(rules.mlp, whole)
    sources: list[tuple[int, ...]] = []
    for step, timestep in enumerate(timesteps):
        if limits is not None and step < limits.begin:
            sources.append((step,) * len(sites))
            continue
        row: list[int] = []
        for i, site in enumerate(sites):
            if site.kind == "mlp":
                source = of_mlp.get((site.stack, site.block), {}).get(step, step)
                if any(source < fresh <= step for fresh in cache_reset_steps):
                    source = step
                row.append(_within(limits, site.kind, step, source))
                continue
            rule = rules.attention(site.kind)
            allowed = step > 0 and step not in cache_reset_steps and rule is not None and rule.holds(site.block)
            reuse = allowed and rule is not None and rule.reuses(step, timestep)
            row.append(_within(limits, site.kind, step, sources[step - 1][i]) if reuse else step)
        sources.append(tuple(row))
    return tuple(sources)


def _within(limits: ReuseLimits | None, kind: str, step: int, source: int) -> int:
    return source if limits is None or limits.allows(kind, step, source) else step


def step_sources(
    rules: StepRules,
    num_steps: int,
    sites: Sequence[Site],
    *,
    skipped: Collection[int],
    cache_reset_steps: Collection[int],
) -> tuple[tuple[int, ...], ...]:
    """Returns what a plan of steps decides; no site computes at `skipped` steps. Raises ValueError for other sites."""
    if problem := rules.misfit(rules.family or "this model", sites):
        raise ValueError(problem)
    everywhere = frozenset(range(num_steps))
    columns = [rules.computing(site, num_steps) for site in sites]
    computing = [everywhere if column is None else column | {*cache_reset_steps} for column in columns]
    sources: list[tuple[int, ...]] = []
    for step in range(num_steps):
        sources.append(
            tuple(
                step if step in steps and step not in skipped else sources[-1][i] for i, steps in enumerate(computing)
            )
        )
    return tuple(sources)
