"""What guarding the quality costs: samples that are rendered twice, their share of the work, and the floor of each family."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.min_quality import AUTO, floor_of, floor_text
from jobs.render_settings import RenderSettings
from manifests.shards import ClipGroup
from pab.broadcast.foresight import ForesightRules
from pipeline.planning.sharding import PlannedWork
from pipeline.screen import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedWork:
    """`samples`: clips that are rendered twice, at most. `seconds`: of a job's ranks, without reuse. `share`: of all work."""

    samples: int
    seconds: float
    share: float


def guarded_work(work: PlannedWork, render: RenderSettings) -> GuardedWork:
    """Returns what a run's jobs render twice: so many clips of each plan of a job, as far as it has them."""
    plans: dict[tuple[object, ...], dict[ClipGroup, int]] = {}
    for group, count in work.groups.items():
        if render.baseline and _reuses(work, group):
            plan = (group.shard_group, group.broadcast, group.num_steps, group.sampling, group.flow_shift)
            plans.setdefault(plan, {})[group] = count
    samples, seconds = 0, 0.0
    for alike in plans.values():
        largest, clips = max(alike, key=lambda group: alike[group]), sum(alike.values())
        jobs = sum(shard.group == largest.shard_group for shard in work.shards.shards)
        number = min(clips, render.quality_samples * jobs)
        samples += number
        alone_s = work.times.without_broadcast(largest, work.mesh, render.keep_of(largest.model))
        seconds += number * alone_s / work.mesh.dp
    return GuardedWork(samples=samples, seconds=seconds, share=seconds / (work.seconds + seconds) if seconds else 0.0)


def _reuses(work: PlannedWork, group: ClipGroup) -> bool:
    plan = work.times.costs.plan(group)
    return isinstance(plan.rules, ForesightRules) or len(plan.full_steps) < plan.num_steps


def floors(work: PlannedWork, render: RenderSettings) -> dict[str, str]:
    """Returns by family what its samples must be, in words, with where the numbers are from."""
    told: dict[str, str] = {}
    for model in sorted({group.model for group in work.groups}):
        floor = floor_of(render.min_quality, work.times.costs.rules.families[model])
        text = floor_text(floor) if render.baseline else "off"
        if floor is not None and render.baseline and floor.source:
            text += f" ({floor.source})"
        elif floor is not None and render.baseline and render.min_quality == AUTO:
            text += " (nobody has measured what is good enough; say --min-quality)"
        told[model] = text
    return told


def guard_document(work: PlannedWork, render: RenderSettings) -> dict[str, object]:
    """Returns what guarding costs, as JSON values."""
    found = guarded_work(work, render)
    return {
        "min_quality": render.min_quality if render.baseline else "off",
        "samples_per_plan_and_job": render.quality_samples if render.baseline else 0,
        "samples": found.samples,
        "minutes": round(found.seconds / 60, 2),
        "share": round(found.share, 4),
        "floors": floors(work, render),
    }


def guard_lines(work: PlannedWork, render: RenderSettings) -> list[str]:
    """Returns the same as text."""
    found = guarded_work(work, render)
    lines = [f"quality of {model}: {text}" for model, text in floors(work, render).items()]
    twice = "rendered twice, with and without reuse: "
    if not found.samples:
        return [*lines, f"{twice}nothing"]
    twice += f"at most {counted(found.samples, 'clip')} ({render.quality_samples} of each plan of a job), "
    return [*lines, f"{twice}{found.share:.1%} of the work ({found.seconds / 60:.2f} min of a job's ranks)"]
