"""What is left of a run, planned into shards: how many jobs, how long, and what broadcasting saves."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from jobs.settings import Mesh
from manifests.read import open_manifest
from manifests.shards import PLAN_COLUMNS, ClipGroup, ShardPlan, plan_shards
from pipeline.cost import ClipCosts
from pipeline.exits import UsageError
from pipeline.settings import MachineSettings, choose_mesh

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
    mesh: Mesh
    seconds: float
    seconds_without_broadcast: float
    longest_clip_s: float

    @property
    def num_clips(self) -> int:
        """Clips to render."""
        return len(self.shards.order)

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
class WorkPlanner:
    """Plans accepted rows with the prices of a run."""

    costs: ClipCosts
    machines: MachineSettings
    baseline: bool

    def plan(self, accepted: Path, done: Set[str]) -> PlannedWork:
        """Plans all rows but the done ones, into few jobs of `job_minutes`, or shorter ones if machines stood idle.

        The first pass learns what there is, the second shares it out. Raises UsageError if a job's minutes are too few.
        """
        ranks = self.machines.ranks_per_job
        found = self._pass(accepted, done, mesh=Mesh(sp=ranks), minutes=float("inf"), overhead_s={})
        mesh = choose_mesh(
            self.machines,
            guided=any(self.costs.two_branches(group) for group in found.clip_groups),
        )
        overhead_s = self._overhead_s(found, mesh)
        seconds = self._total_s(found, mesh, with_broadcast=True)
        minutes = self._minutes(seconds, overhead_s)
        return PlannedWork(
            shards=self._pass(accepted, done, mesh=mesh, minutes=minutes, overhead_s=overhead_s),
            mesh=mesh,
            seconds=seconds,
            seconds_without_broadcast=self._total_s(found, mesh, with_broadcast=False),
            longest_clip_s=max((self._alone_s(group, mesh) for group in found.clip_groups), default=0.0),
        )

    def _alone_s(self, group: ClipGroup, mesh: Mesh) -> float:
        return on_mesh(self.costs, self.costs.seconds_without_broadcast(group), group, mesh) * mesh.dp

    def _pass(
        self, accepted: Path, done: Set[str], *, mesh: Mesh, minutes: float, overhead_s: Mapping[str, float]
    ) -> ShardPlan:
        def cost(group: ClipGroup) -> float:
            return on_mesh(self.costs, self.costs.seconds(group), group, mesh)

        with open_manifest(str(accepted)) as manifest:
            models = _Overheads(overhead_s)
            try:
                return plan_shards(
                    manifest.iter_batches(PLAN_COLUMNS), done, cost=cost, job_minutes=minutes, load_s=models
                )
            except ValueError as error:
                raise UsageError(f"--job-minutes: {error}") from error

    def _total_s(self, plan: ShardPlan, mesh: Mesh, *, with_broadcast: bool) -> float:
        price = self.costs.seconds if with_broadcast else self.costs.seconds_without_broadcast
        return sum(count * on_mesh(self.costs, price(group), group, mesh) for group, count in plan.clip_groups.items())

    def _overhead_s(self, plan: ShardPlan, mesh: Mesh) -> dict[str, float]:
        # What a job does besides its clips: it loads the family, and renders one clip again as a baseline.
        overheads: dict[str, float] = {}
        for group in plan.clip_groups:
            without = self.costs.seconds_without_broadcast(group)
            again = on_mesh(self.costs, without, group, mesh) * mesh.dp if self.baseline else 0.0
            total = self.costs.load_s(group.model) + again
            overheads[group.model] = max(overheads.get(group.model, 0.0), total)
        limit = 60 * self.machines.job_minutes * MAX_OVERHEAD
        return {model: max(self.costs.load_s(model), min(total, limit)) for model, total in overheads.items()}

    def _minutes(self, seconds: float, overhead_s: Mapping[str, float]) -> float:
        overhead = max(overhead_s.values(), default=0.0)
        fair = max(seconds / self.machines.max_parallel_jobs, MIN_LOADS * overhead) + overhead
        return min(float(self.machines.job_minutes), fair * (1 + 1e-6) / 60)


def on_mesh(costs: ClipCosts, seconds: float, group: ClipGroup, mesh: Mesh) -> float:
    """Returns a job's seconds per clip from one rank's: a clip of one branch leaves nothing to share over a cfg axis."""
    return seconds / (mesh.dp * mesh.sp * (mesh.cfg if costs.two_branches(group) else 1))


class _Overheads(dict[str, float]):
    def __missing__(self, model: str) -> float:
        return 0.0
