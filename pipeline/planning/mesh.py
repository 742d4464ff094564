"""Which mesh a run's jobs get: the most clips per GPU-hour, or the shortest clip, among those that fit into memory.

All of it is decided in plain Python from measured or planned seconds. It is shown as well: every mesh that was considered,
where its seconds and bytes are from, and why one won.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil

from jobs.settings import Mesh
from manifests.shards import ClipGroup, ShardGroup
from pipeline.planning.clip_times import MEASURED, ClipTimes, source_of, weakest
from pipeline.planning.memory import rank_bytes
from pipeline.run.rules import RunRules

THROUGHPUT, LATENCY = "auto", "latency"
GOALS = {THROUGHPUT: "the most clips per GPU-hour", LATENCY: "the shortest time of one clip"}
GB = 1e9


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
    picked: bool = False

    def to_dict(self) -> dict[str, object]:
        """Returns the facts as JSON values."""
        return {
            **asdict(self),
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

    @property
    def picked(self) -> MeshFacts:
        """What is known of the mesh that was taken."""
        return next(facts for facts in self.considered if facts.picked)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshQuestion:
    """What a mesh is chosen for: how many clips of each group are left, on how many ranks a job, how many jobs at once.

    `memory_bytes`: of a rank's device; None for no bound, which `memory_from` then explains.
    """

    groups: Mapping[ClipGroup, int]
    ranks: int
    jobs: int
    goal: str
    precision: str
    keep: str
    memory_bytes: float | None
    memory_from: str


def candidates(ranks: int, *, two_branches: bool, splits: bool) -> list[Mesh]:
    """Returns every mesh of so many ranks: cfg=2 only where some clip has two branches, sp only where all models split."""
    return [
        Mesh(dp=dp, cfg=cfg, sp=ranks // dp // cfg)
        for dp in range(ranks, 0, -1)
        for cfg in ((1, 2) if two_branches else (1,))
        if ranks % (dp * cfg) == 0 and (splits or dp * cfg == ranks)
    ]


def choose_mesh(question: MeshQuestion, times: ClipTimes, rules: RunRules, *, asked: Mesh | None = None) -> MeshChoice:
    """Chooses a mesh, or takes the one that is asked for; either way says how all of them compare."""
    families = [rules.families[group.model] for group in question.groups]
    meshes = candidates(
        question.ranks,
        two_branches=any(times.costs.two_branches(group) for group in question.groups),
        splits=all(family.splits for family in families),
    )
    if asked is not None and asked not in meshes:
        meshes.append(asked)
    considered = [facts_of(mesh, question, times, rules) for mesh in meshes]
    if asked is not None or not question.groups:
        # With no clip left there is no job either.
        best = next(facts for facts in considered if facts.mesh == (asked or meshes[0]))
        reason = f"{best.mesh} was asked for with --mesh" if asked else "nothing is left to render"
    else:
        best, reason = pick(considered, question)
    return MeshChoice(
        mesh=best.mesh,
        considered=tuple(replace(facts, picked=facts is best) for facts in considered),
        reason=reason,
    )


def facts_of(mesh: Mesh, question: MeshQuestion, times: ClipTimes, rules: RunRules) -> MeshFacts:
    """Returns what a mesh would give. Ranks that stand idle because a job's clips do not divide by `dp` count."""
    latency_s = 0.0
    seconds: dict[ShardGroup, float] = defaultdict(float)
    counts: Counter[ShardGroup] = Counter()
    sources: set[str] = set()
    for group, count in question.groups.items():
        timed = times.per_clip(group, mesh)
        seconds[group.shard_group] += count * timed.seconds
        counts[group.shard_group] += count
        latency_s += count * times.latency(group, mesh).seconds
        sources.add(timed.source)
    # The clips of a job, of any plan, are dealt out one by one.
    of_jobs = {shared: max(1, ceil(count / question.jobs)) for shared, count in counts.items()}
    wall_s = sum(seconds[shared] * ceil(clips / mesh.dp) / clips for shared, clips in of_jobs.items())
    clips = counts.total()
    memory, memory_sources = _memory(mesh, question, times, rules)
    bound = question.memory_bytes
    return MeshFacts(
        mesh=mesh,
        clips_per_gpu_hour=3600 * clips / (wall_s * mesh.num_ranks) if wall_s else 0.0,
        latency_s=latency_s / clips if clips else 0.0,
        memory_bytes=memory,
        fits=None if bound is None or memory is None else memory <= bound,
        times=weakest(sources),
        memory=None if memory is None else weakest(memory_sources),
    )


def _memory(
    mesh: Mesh, question: MeshQuestion, times: ClipTimes, rules: RunRules
) -> tuple[float | None, Collection[str]]:
    """Returns the largest of the groups' figures, measured where it was, and their labels; None if one is not known."""
    found: dict[str, float] = {}
    for group in question.groups:
        family, two = rules.families[group.model], times.costs.two_branches(group)
        needed = times.measured.peak_bytes(group, mesh.cfg if two else 1, mesh.sp)
        source = MEASURED
        if needed is None:
            needed = rank_bytes(
                family,
                group,
                times.costs.plan(group),
                mesh,
                two_branches=two,
                precision=question.precision,
                keep=question.keep,
            )
            source = source_of(family.cost.memory.measured if family.cost.memory else None)
        if needed is None:
            return None, ()
        found[source] = max(needed, found.get(source, 0.0))
    return max(found.values(), default=None), found


def pick(considered: Sequence[MeshFacts], question: MeshQuestion) -> tuple[MeshFacts, str]:
    """Returns the best mesh for the goal that is not expected to be too large, and why it is that one."""

    def better(facts: MeshFacts) -> tuple[float, float, int, int]:
        by_rate, by_time = -round(facts.clips_per_gpu_hour, 6), round(facts.latency_s, 6)
        first, second = (by_time, by_rate) if question.goal == LATENCY else (by_rate, by_time)
        # Of equals the one whose ranks exchange least.
        return first, second, facts.mesh.sp, facts.mesh.cfg

    ranked = sorted(considered, key=better)
    fitting = [facts for facts in ranked if facts.fits is not False]
    bound = f"{_gb(question.memory_bytes)} GB ({question.memory_from})"
    if not fitting:
        best = min(ranked, key=lambda facts: facts.memory_bytes or 0.0)
        return (
            best,
            f"{best.mesh}: no mesh is expected to fit into {bound}; this one needs least, {_needs(best)}",
        )
    best, rest = fitting[0], fitting[1:]
    reason = f"{best.mesh} gives {GOALS[question.goal]}, {_figure(best, question.goal)}{_label(best.times)}"
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
        name = f"{'*' if facts.picked else ' '} {facts.mesh}"
        lines.append(
            f"{name:<20}{facts.clips_per_gpu_hour:>20,.1f}{facts.latency_s:>14,.2f}{_gb(facts.memory_bytes):>12}  "
            f"{facts.times}{too_large}"
        )
    bound = "no bound" if question.memory_bytes is None else f"{_gb(question.memory_bytes)} GB"
    needed = ", ".join(sorted({facts.memory for facts in choice.considered if facts.memory})) or "not known"
    lines += [
        f"memory of a rank: {bound} ({question.memory_from}); what a mesh needs is {needed}",
        f"times measured by earlier jobs: {source or 'none'}",
    ]
    return [*lines, f"mesh: {choice.reason}"]
