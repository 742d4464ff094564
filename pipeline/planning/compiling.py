"""Whether compiled blocks pay: what the clips of a run's jobs would save by them, against the seconds that compiling takes.

Weighed once, when a run begins (`--compile auto` on GPUs), because compiled blocks round differently and so are part of a
clip's digest. All seconds here are estimates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from jobs.render_settings import CompileChoice, RenderSettings
from jobs.reports.number_formats import duration
from jobs.settings import Mesh
from manifests.shards import ClipGroup, ShardGroup
from pab.broadcast.foresight import ForesightRules
from pab.broadcast.rules import NO_BROADCAST
from pab.family import Family
from pipeline.planning.clip_times import ClipTimes
from pipeline.planning.cost import EAGER_TIMES, clip_request, eager_times
from pipeline.run.rules import RunRules
from pipeline.screen import counted

GRAPH_S = 1.0
"""Seconds of a job to compile one graph, with nothing kept from earlier jobs: 17 graphs took 17.2 s (docs/performance.md)."""
START_S = 10.0
"""Seconds of a job's first compiled step beside its graphs, with nothing kept from earlier jobs: kernels of our own, workers,
libraries. A first step of two graphs took 12.1 and 13.5 s (docs/performance.md, what a job does first)."""
EAGER_TIMES_RECORDED = 4.7
"""How many times as long eager blocks take where the loops of small clips are recorded (Open-Sora, 1.41 and 0.297 s)."""
SMALL_TOKENS = 8192
"""Of a clip on one rank, up to which `EAGER_TIMES_RECORDED` holds. Loops of larger ones are recorded too
(`pab.sampling.recorded_sizes`), but their eager blocks are not as far behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiling:
    """What compiling costs and saves the jobs of one family. `graphs`: of one job at most; `seconds`: of all jobs' compiling.

    `work_s`: of all its clips with compiled blocks. `saved_s`: how much longer they take with eager ones.
    """

    jobs: int
    graphs: int
    seconds: float
    work_s: float
    saved_s: float

    @property
    def pays(self) -> bool:
        """Whether the clips save at least what compiling takes."""
        return self.saved_s >= self.seconds

    @property
    def choice(self) -> CompileChoice:
        """What jobs do, and why."""
        told = (
            f"{counted(self.jobs, 'job')} would compile up to {counted(self.graphs, 'graph')} each, about "
            f"{duration(self.seconds)} in all, and save about {duration(self.saved_s)} of "
            f"{duration(self.work_s + self.saved_s)} (estimated)"
        )
        return CompileChoice(compiled=self.pays, why=f"{'compiled' if self.pays else 'eager'} blocks, because {told}")

    def plus(self, other: Compiling) -> Compiling:
        """Returns both together."""
        return Compiling(
            jobs=self.jobs + other.jobs,
            graphs=max(self.graphs, other.graphs),
            seconds=self.seconds + other.seconds,
            work_s=self.work_s + other.work_s,
            saved_s=self.saved_s + other.saved_s,
        )


def weigh_compiling(
    groups: Mapping[ClipGroup, int],
    times: ClipTimes,
    rules: RunRules,
    render: RenderSettings,
    *,
    mesh: Mesh,
    job_s: float,
) -> dict[str, CompileChoice]:
    """Weighs compiling for each family of these clips whose blocks can be compiled. `job_s`: seconds of one job's clips."""
    alike: dict[ShardGroup, dict[ClipGroup, int]] = {}
    for group, count in groups.items():
        alike.setdefault(group.shard_group, {})[group] = count
    found: dict[str, Compiling] = {}
    for of_shard in alike.values():
        model = next(iter(of_shard)).model
        if rules.families[model].compiles:
            each = _of_shards(of_shard, times, rules.families[model], render, mesh=mesh, job_s=job_s)
            found[model] = found[model].plus(each) if model in found else each
    return {model: each.choice for model, each in sorted(found.items())}


def _of_shards(
    groups: Mapping[ClipGroup, int],
    times: ClipTimes,
    family: Family,
    render: RenderSettings,
    *,
    mesh: Mesh,
    job_s: float,
) -> Compiling:
    keep = render.keep_of(family.name)
    clips_s = sum(count * times.per_clip(group, mesh, keep).seconds for group, count in groups.items()) / mesh.dp
    jobs = max(1, ceil(clips_s / job_s))
    kinds: set[tuple[object, ...]] = set()
    samples_s = 0.0
    for group, count in groups.items():
        plan = times.costs.plan(group)
        kinds |= {(group.guided, kind) for kind in plan.graph_kinds}
        if render.baseline and (isinstance(plan.rules, ForesightRules) or len(plan.full_steps) < plan.num_steps):
            # Samples are rendered again without reuse, which has graphs of its own.
            whole = family.plan(clip_request(family, group), NO_BROADCAST, times.costs.precision_of(group.model))
            kinds |= {(group.guided, kind) for kind in whole.graph_kinds}
            samples = min(count, jobs * render.quality_samples)
            samples_s += samples * times.without_broadcast(group, mesh, keep) / mesh.dp
    decoder_s = family.decoder_compile_s if render.decode == "fast" else 0.0
    work_s = clips_s + samples_s
    return Compiling(
        jobs=jobs,
        graphs=len(kinds),
        seconds=jobs * (START_S + GRAPH_S * len(kinds) + decoder_s),
        work_s=work_s,
        saved_s=work_s * (_eager_times(family, render, next(iter(groups)), mesh) - 1),
    )


def _eager_times(family: Family, render: RenderSettings, group: ClipGroup, mesh: Mesh) -> float:
    times = eager_times(family, render.precision_of(family))
    small = family.num_tokens(group.num_frames, group.height, group.width) <= SMALL_TOKENS
    recorded = family.records_loops and small and mesh.cfg * mesh.sp == 1
    return EAGER_TIMES_RECORDED if recorded and times == EAGER_TIMES else times
