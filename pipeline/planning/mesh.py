"""Which mesh a run's jobs get: the most clips per GPU-hour, or the shortest clip, among those that fit into memory.

Beside meshes the ways to keep outputs are weighed (`kept.py`). A way that changes pixels is taken only if nothing else fits,
or if it is `WORTH` times as good. All of it is decided in plain Python from measured or planned seconds. It is shown as well:
every mesh that was considered, where its seconds and bytes are from, and why one won.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import ceil

from jobs.render_settings import KeepChoice
from jobs.settings import Mesh
from manifests.shards import ClipGroup, ShardGroup
from pipeline.planning.clip_times import MEASURED, ClipTimes, weakest
from pipeline.planning.kept import (
    KeptQuestion,
    Way,
    WayFacts,
    choice_of,
    chosen_text,
    default_broadcast,
    misfit_warning,
    ways_table,
)
from pipeline.planning.memory import GB, RESERVED_BYTES
from pipeline.run.rules import RunRules

THROUGHPUT, LATENCY = "auto", "latency"
GOALS = {THROUGHPUT: "the most clips per GPU-hour", LATENCY: "the shortest time of one clip"}
WORTH = 1.1
"""How many times as good a mesh must be that fits only if pixels change, to win against one that changes none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshFacts:
    """One mesh that was considered. `fits` is None where memory has no bound or is not known.

    `times` and `memory` say where seconds and bytes are from: measured, scaled, from measured figures, or estimated.
    """

    mesh: Mesh
    clips_per_gpu_hour: float
    latency_s: float
    memory_bytes: float | None
    fits: bool | None
    times: str
    memory: str | None
    kept: Mapping[str, WayFacts] = field(default_factory=dict)
    """By family, how its outputs are kept on this mesh."""
    picked: bool = False

    @property
    def changes(self) -> bool:
        """Whether it fits only because outputs are kept otherwise than asked for."""
        return not all(each.way.as_asked for each in self.kept.values() if each.way.allowed)

    def to_dict(self) -> dict[str, object]:
        """Returns the facts as JSON values."""
        return {
            **{each.name: getattr(self, each.name) for each in fields(self)},
            "kept": {model: each.to_dict() for model, each in self.kept.items()},
            "mesh": str(self.mesh),
            "clips_per_gpu_hour": round(self.clips_per_gpu_hour, 3),
            "latency_s": round(self.latency_s, 4),
            "memory_bytes": None if self.memory_bytes is None else round(self.memory_bytes),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshChoice:
    """The mesh of all jobs, those it was chosen from, and the sentence that says why."""

    mesh: Mesh
    considered: tuple[MeshFacts, ...]
    reason: str
    kept: Mapping[str, KeepChoice] = field(default_factory=dict)
    """By family, what was chosen that changes pixels."""
    ways: Mapping[str, tuple[WayFacts, ...]] = field(default_factory=dict)
    """By family that keeps outputs, every way to keep them on the chosen mesh; empty where memory has no bound."""
    warnings: tuple[str, ...] = ()
    """What is told of families whose clips are not expected to fit."""
    told: Mapping[str, str] = field(default_factory=dict)
    """By family in `kept`, what was chosen and why, in words."""

    @property
    def picked(self) -> MeshFacts:
        """What is known of the mesh that was taken."""
        return next(facts for facts in self.considered if facts.picked)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshQuestion:
    """What a mesh is chosen for: how many clips of each group are left, on how many ranks a job, how many jobs at once.

    `memory_bytes`: of a rank's device; None for no bound, which `memory_from` then explains. `ways`: by family, the ways to
    keep its outputs, as asked first; a family that is not there keeps them as `keep` says.
    """

    groups: Mapping[ClipGroup, int]
    ranks: int
    jobs: int
    goal: str
    precision: str
    keep: str
    memory_bytes: float | None
    memory_from: str
    ways: Mapping[str, tuple[Way, ...]] = field(default_factory=dict)

    @property
    def about_memory(self) -> KeptQuestion:
        """What ways to keep outputs are judged by."""
        return KeptQuestion(groups=self.groups, precision=self.precision, memory_bytes=self.memory_bytes)

    @property
    def bound(self) -> str:
        """The memory of a rank's device, in words."""
        return f"{_gb(self.memory_bytes)} GB ({self.memory_from})"

    def ways_of(self, model: str, rules: RunRules) -> tuple[Way, ...]:
        """Returns the ways of a family."""
        return self.ways.get(model) or (Way(keep=self.keep, broadcast=default_broadcast(rules, model), as_asked=True),)


def candidates(ranks: int, *, two_branches: bool) -> list[Mesh]:
    """Returns every mesh of so many ranks: cfg=2 only where some clip has two branches."""
    return [
        Mesh(dp=dp, cfg=cfg, sp=ranks // dp // cfg)
        for dp in range(ranks, 0, -1)
        for cfg in ((1, 2) if two_branches else (1,))
        if ranks % (dp * cfg) == 0
    ]


def choose_mesh(question: MeshQuestion, times: ClipTimes, rules: RunRules, *, asked: Mesh | None = None) -> MeshChoice:
    """Chooses a mesh, or takes the one that is asked for; either way says how all of them compare."""
    two_branches = any(times.costs.two_branches(group) for group in question.groups)
    meshes = candidates(question.ranks, two_branches=two_branches)
    if asked is not None and asked not in meshes:
        meshes.append(asked)
    considered = [facts_of(mesh, question, times, rules) for mesh in meshes]
    if asked is not None or not question.groups:
        # With no clip left there is no job either.
        best = next(facts for facts in considered if facts.mesh == (asked or meshes[0]))
        reason = f"{best.mesh} was asked for with --mesh" if asked else "nothing is left to render"
    else:
        best, reason = pick(considered, question)
    ways = _all_ways(best, question, times, rules)
    told = {model: misfit_warning(model, ways[model], best.kept[model], question.bound) for model in ways}
    return MeshChoice(
        mesh=best.mesh,
        considered=tuple(replace(facts, picked=facts is best) for facts in considered),
        reason=reason,
        kept={
            model: choice_of(each.way, question.ways_of(model, rules))
            for model, each in best.kept.items()
            if not each.way.as_asked
        },
        told={
            model: chosen_text(best.kept[model], ways[model], question.bound, best.mesh)
            for model in ways
            if not best.kept[model].way.as_asked
        },
        ways=ways,
        warnings=tuple(filter(None, told.values())),
    )


def _all_ways(
    best: MeshFacts, question: MeshQuestion, times: ClipTimes, rules: RunRules
) -> dict[str, tuple[WayFacts, ...]]:
    asked = question.about_memory
    several = {model: ways for model in best.kept if len(ways := question.ways_of(model, rules)) > 1}
    if question.memory_bytes is None:
        return {}
    return {
        model: tuple(asked.facts(model, way, best.mesh, times, rules) for way in ways)
        for model, ways in several.items()
    }


def facts_of(mesh: Mesh, question: MeshQuestion, times: ClipTimes, rules: RunRules) -> MeshFacts:
    """Returns what a mesh would give. Ranks that stand idle because a job's clips do not divide by `dp` count."""
    latency_s = 0.0
    seconds: dict[ShardGroup, float] = defaultdict(float)
    counts: Counter[ShardGroup] = Counter()
    sources: set[str] = set()
    kept = {
        model: question.about_memory.best(model, question.ways_of(model, rules), mesh, times, rules)
        for model in dict.fromkeys(group.model for group in question.groups)
    }
    for group, count in question.groups.items():
        way = kept[group.model].way
        changed = way.of(group, default_broadcast(rules, group.model))
        timed = times.per_clip(changed, mesh, way.keep)
        seconds[group.shard_group] += count * timed.seconds
        counts[group.shard_group] += count
        latency_s += count * times.latency(changed, mesh, way.keep).seconds
        sources.add(timed.source)
    # The clips of a job, of any plan, are dealt out one by one.
    of_jobs = {shared: max(1, ceil(count / question.jobs)) for shared, count in counts.items()}
    wall_s = sum(seconds[shared] * ceil(clips / mesh.dp) / clips for shared, clips in of_jobs.items())
    clips = counts.total()
    needed = [each.memory_bytes for each in kept.values()]
    known = None not in needed and bool(needed)
    fits = [each.fits for each in kept.values()]
    return MeshFacts(
        mesh=mesh,
        clips_per_gpu_hour=3600 * clips / (wall_s * mesh.num_ranks) if wall_s else 0.0,
        latency_s=latency_s / clips if clips else 0.0,
        memory_bytes=max(size for size in needed if size is not None) if known else None,
        fits=False if False in fits else None if None in fits or not fits else True,
        times=weakest(sources),
        memory=weakest([each.memory for each in kept.values() if each.memory]) if known else None,
        kept=kept,
    )


def pick(considered: Sequence[MeshFacts], question: MeshQuestion) -> tuple[MeshFacts, str]:
    """Returns the best mesh for the goal that is not expected to be too large, and why it is that one."""

    def better(facts: MeshFacts) -> tuple[float, float, int, int]:
        price = WORTH if facts.changes else 1.0
        by_rate, by_time = -round(facts.clips_per_gpu_hour / price, 6), round(facts.latency_s * price, 6)
        first, second = (by_time, by_rate) if question.goal == LATENCY else (by_rate, by_time)
        # Of equals the one whose ranks exchange least.
        return first, second, facts.mesh.sp, facts.mesh.cfg

    ranked = sorted(considered, key=better)
    fitting = [facts for facts in ranked if facts.fits is not False]
    bound = question.bound
    if not fitting:
        best = min(ranked, key=lambda facts: facts.memory_bytes or 0.0)
        return (
            best,
            f"{best.mesh}: no mesh is expected to fit into {bound}; this one needs least, {_needs(best)}",
        )
    best, rest = fitting[0], fitting[1:]
    reason = f"{best.mesh} gives {GOALS[question.goal]}, {_figure(best, question.goal)}{_label(best.times)}"
    if best.changes:
        changed = [f"{model} {each.way}" for model, each in best.kept.items() if not each.way.as_asked]
        reason += f", with {'; '.join(changed)}"
    if rest:
        reason += f"; next is {rest[0].mesh} with {_figure(rest[0], question.goal)}"
    faster = [facts for facts in ranked[: ranked.index(best)] if facts.fits is False]
    if faster:
        reason += f"; {faster[0].mesh} would be ahead, but needs {_needs(faster[0])} of {bound}"
    return best, reason


def _figure(facts: MeshFacts, goal: str) -> str:
    return f"{facts.latency_s:,.2f} s" if goal == LATENCY else f"{facts.clips_per_gpu_hour:,.1f}"


def _needs(facts: MeshFacts) -> str:
    return f"{_gb(facts.memory_bytes)} GB{_label(facts.memory)}"


def _label(source: str | None) -> str:
    return "" if source in {None, MEASURED} else f" ({source})"


def _gb(size: float | None) -> str:
    return "?" if size is None else f"{size / GB:.1f}"


def mesh_table(choice: MeshChoice, question: MeshQuestion, source: str | None) -> list[str]:
    """Returns the meshes that were considered as lines of text, and what their figures are from."""
    lines = [f"{'mesh':<20}{'clips per GPU-hour':>20}{'one clip, s':>14}{'memory, GB':>12}  times"]
    for facts in choice.considered:
        too_large = " (does not fit)" if facts.fits is False else ""
        if facts.changes and facts.fits:
            changed = [f"{model} {each.way}" for model, each in facts.kept.items() if not each.way.as_asked]
            too_large = f" (fits with {'; '.join(changed)})"
        name = f"{'*' if facts.picked else ' '} {facts.mesh}"
        lines.append(
            f"{name:<20}{facts.clips_per_gpu_hour:>20,.1f}{facts.latency_s:>14,.2f}{_gb(facts.memory_bytes):>12}  "
            f"{facts.times}{too_large}"
        )
    reserved = f", of which {_gb(RESERVED_BYTES)} GB are left free where memory was not measured"
    bound = "no bound" if question.memory_bytes is None else f"{_gb(question.memory_bytes)} GB{reserved}"
    needed = ", ".join(sorted({facts.memory for facts in choice.considered if facts.memory})) or "not known"
    lines += [
        f"memory of a rank: {bound} ({question.memory_from}); what a mesh needs is {needed}",
        f"times measured by earlier jobs: {source or 'none'}",
    ]
    picked = next((facts for facts in choice.considered if facts.picked), None)
    for model, ways in choice.ways.items():
        assert picked is not None, "ways are those on the picked mesh"
        lines += ways_table(model, ways, picked.kept[model].way, choice.mesh)
    return [*lines, f"mesh: {choice.reason}"]
