"""What is left of a run, planned into shards: how many jobs, how long, and what broadcasting saves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from jobs.render_settings import CompileChoice, RenderSettings
from jobs.settings import Mesh
from manifests.read import open_manifest
from manifests.shards import PLAN_COLUMNS, ClipGroup, ShardPlan, plan_shards
from pab.execution.choice import KEEP_CHOICES
from pipeline.exits import UsageError
from pipeline.planning.clip_times import ClipTimes
from pipeline.planning.compiling import weigh_compiling
from pipeline.planning.kept import ways_of
from pipeline.planning.mesh import MeshChoice, MeshQuestion, choose_mesh, mesh_table
from pipeline.run.rules import RunRules
from pipeline.run.settings import MESH_GOALS, MachineSettings, parse_mesh
from pipeline.screen import counted

MIN_LOADS = 4.0
"""Work is shared out only so far that a job renders at least this many times as long as it loads."""
MAX_OVERHEAD = 0.5
"""Loading and the baseline clip may be planned with this part of a job's minutes at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedWork:
    """The clips to render as shards, and the mesh of every job. Seconds are of rendering alone, on a job's ranks.

    `longest_clip_s`: of one clip on its own ranks, without broadcast.
    """

    shards: ShardPlan
    seconds: float
    seconds_without_broadcast: float
    longest_clip_s: float
    times: ClipTimes
    choice: MeshChoice
    mesh_lines: tuple[str, ...]
    """The table of meshes, as text."""

    @property
    def mesh(self) -> Mesh:
        """The mesh of every job."""
        return self.choice.mesh

    @property
    def num_clips(self) -> int:
        """Clips to render."""
        return len(self.shards.order)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is told of plans that reuse less than their rules say, because clips have few steps."""
        told: Counter[str] = Counter()
        misfits = self.choice.warnings
        for group, num_clips in sorted(self.groups.items()):
            if warning := self.times.costs.plan(group).warning(group.broadcast):
                told[f"{group.model}, {warning}"] += num_clips
        return (*misfits, *(f"{counted(num_clips, 'clip')} of {warning}" for warning, num_clips in told.items()))

    @property
    def speedup(self) -> float | None:
        """How many times as fast as without broadcast the whole is planned to be; None if there is nothing to render."""
        return self.seconds_without_broadcast / self.seconds if self.seconds else None

    @property
    def groups(self) -> Mapping[ClipGroup, int]:
        """Clips that cost the same, and their number."""
        return self.shards.clip_groups

    @property
    def largest_group(self) -> ClipGroup:
        """The group with the most clips."""
        return max(self.groups, key=lambda group: self.groups[group])


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """Memory of a rank's device, None for no bound, and how that is known."""

    size_bytes: float | None
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkPlanner:
    """Plans accepted rows with the prices of a run."""

    times: ClipTimes
    rules: RunRules
    machines: MachineSettings
    render: RenderSettings
    memory: DeviceMemory

    def plan(self, accepted: Path, done: Set[str]) -> PlannedWork:
        """Plans all rows but the done ones, into few jobs of `job_minutes`, or shorter ones if machines stood idle.

        The first pass learns what there is, the second shares it out. Raises UsageError if a job's minutes are too few.
        """
        found = self._look(accepted, done)
        question = self._question(found, begun=True)
        choice = choose_mesh(question, self.times, self.rules, asked=self._asked_mesh)
        mesh = choice.mesh
        overhead_s = self._overhead_s(found, mesh)
        seconds = self._total_s(found, mesh, with_broadcast=True)
        minutes = self._minutes(seconds, overhead_s)
        return PlannedWork(
            shards=self._pass(accepted, done, mesh=mesh, minutes=minutes, overhead_s=overhead_s),
            times=self.times,
            choice=choice,
            mesh_lines=tuple(mesh_table(choice, question, self.times.measured.source)),
            seconds=seconds,
            seconds_without_broadcast=self._total_s(found, mesh, with_broadcast=False),
            longest_clip_s=max((self._alone_s(group, mesh) for group in found.clip_groups), default=0.0),
        )

    def begin(self, accepted: Path) -> tuple[MeshChoice, dict[str, CompileChoice]]:
        """Chooses for a run that begins how outputs are kept, with the mesh that goes with it; weighs compiling by family."""
        found = self._look(accepted, frozenset())
        choice = choose_mesh(self._question(found, begun=False), self.times, self.rules, asked=self._asked_mesh)
        mesh, overhead_s = choice.mesh, self._overhead_s(found, choice.mesh)
        minutes = self._minutes(self._total_s(found, mesh, with_broadcast=True), overhead_s)
        job_s = max(1.0, 60 * minutes - max(overhead_s.values(), default=0.0))
        weighed = weigh_compiling(found.clip_groups, self.times, self.rules, self.render, mesh=mesh, job_s=job_s)
        return choice, weighed

    @property
    def _asked_mesh(self) -> Mesh | None:
        return None if self.machines.mesh in MESH_GOALS else parse_mesh(self.machines.mesh)

    def _look(self, accepted: Path, done: Set[str]) -> ShardPlan:
        mesh = Mesh(dp=self.machines.ranks_per_job)
        return self._pass(accepted, done, mesh=mesh, minutes=float("inf"), overhead_s={})

    def _question(self, found: ShardPlan, *, begun: bool) -> MeshQuestion:
        by_model: dict[str, list[ClipGroup]] = {}
        for group in found.clip_groups:
            by_model.setdefault(group.model, []).append(group)
        return MeshQuestion(
            ways={
                model: ways_of(self.render, self.rules, model, groups, begun=begun)
                for model, groups in by_model.items()
            },
            groups=found.clip_groups,
            ranks=self.machines.ranks_per_job,
            jobs=self.machines.max_parallel_jobs,
            goal=self.machines.mesh,
            precision=self.render.precision,
            keep=KEEP_CHOICES[0],
            memory_bytes=self.memory.size_bytes,
            memory_from=self.memory.source,
        )

    def _alone_s(self, group: ClipGroup, mesh: Mesh) -> float:
        return self.times.without_broadcast(group, mesh, self.render.keep_of(group.model))

    def _clip_s(self, group: ClipGroup, mesh: Mesh) -> float:
        return self.times.per_clip(group, mesh, self.render.keep_of(group.model)).seconds

    def _pass(
        self, accepted: Path, done: Set[str], *, mesh: Mesh, minutes: float, overhead_s: Mapping[str, float]
    ) -> ShardPlan:
        def cost(group: ClipGroup) -> float:
            return self._clip_s(group, mesh) / mesh.dp

        with open_manifest(str(accepted)) as manifest:
            models = _Overheads(overhead_s)
            try:
                return plan_shards(
                    manifest.iter_batches(PLAN_COLUMNS), done, cost=cost, job_minutes=minutes, load_s=models
                )
            except ValueError as error:
                raise UsageError(f"--job-minutes: {error}") from error

    def _total_s(self, plan: ShardPlan, mesh: Mesh, *, with_broadcast: bool) -> float:
        def seconds(group: ClipGroup) -> float:
            return self._clip_s(group, mesh) if with_broadcast else self._alone_s(group, mesh)

        return sum(count * seconds(group) for group, count in plan.clip_groups.items()) / mesh.dp

    def _overhead_s(self, plan: ShardPlan, mesh: Mesh) -> dict[str, float]:
        # What a job does besides its clips: it loads the family, and renders its samples again without broadcast.
        overheads: dict[str, float] = {}
        for group in plan.clip_groups:
            again = self._alone_s(group, mesh) * self.render.quality_samples if self.render.baseline else 0.0
            total = self.times.costs.load_s(group.model) + again
            overheads[group.model] = max(overheads.get(group.model, 0.0), total)
        limit = 60 * self.machines.job_minutes * MAX_OVERHEAD
        return {model: max(self.times.costs.load_s(model), min(total, limit)) for model, total in overheads.items()}

    def _minutes(self, seconds: float, overhead_s: Mapping[str, float]) -> float:
        overhead = max(overhead_s.values(), default=0.0)
        fair = max(seconds / self.machines.max_parallel_jobs, MIN_LOADS * overhead) + overhead
        return min(float(self.machines.job_minutes), fair * (1 + 1e-6) / 60)


class _Overheads(dict[str, float]):
    def __missing__(self, model: str) -> float:
        return 0.0
