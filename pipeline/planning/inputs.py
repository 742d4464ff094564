"""What a plan is made from: prices of clips, times that were measured before, and the kind and memory of the devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.devices import gpu_kind, gpu_memory_bytes
from jobs.pixel_settings import CHOSEN
from jobs.render_settings import CompileChoice, KeepChoice
from jobs.store.bucket import Bucket
from pab.families import FAMILIES
from pipeline.planning.clip_times import ClipTimes
from pipeline.planning.cost import ClipCosts
from pipeline.planning.figures import CPU, FiguresSource, read_figures_file
from pipeline.planning.measured import MeasuredTimes, read_measured_file, read_measured_jobs
from pipeline.planning.memory import GB
from pipeline.planning.sharding import DeviceMemory, PlannedWork, WorkPlanner
from pipeline.run.rules import RunRules
from pipeline.run.settings import RunSettings
from pipeline.run.state import Progress


def plan_work(
    settings: RunSettings,
    rules: RunRules,
    accepted: Path,
    progress: Progress,
    bucket: Bucket,
    *,
    at_work: frozenset[str] = frozenset(),
) -> PlannedWork:
    """Plans the accepted rows that have no record, no failure, and no job at work on them (their keys: `at_work`).

    Raises UsageError, BucketError.
    """
    return _planner(settings, rules, bucket).plan(accepted, progress.recorded | progress.not_rendered | at_work)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """What is chosen by family when a run begins, and stands for all its submits: how outputs are kept, what is compiled.

    `told`: by family in `kept`, what was chosen and why.
    """

    kept: Mapping[str, KeepChoice] = field(default_factory=dict)
    weighed: Mapping[str, CompileChoice] = field(default_factory=dict)
    told: Mapping[str, str] = field(default_factory=dict)

    @property
    def pixels(self) -> tuple[dict[str, KeepChoice], set[str]]:
        """The part that is in the clips' digests: what is kept, and families with eager blocks."""
        return dict(self.kept), {model for model, choice in self.weighed.items() if not choice.compiled}


AS_ASKED = Beginning()
"""Nothing was chosen."""


def choose_beginning(
    settings: RunSettings, rules: RunRules, accepted: Path, bucket: Bucket, *, weigh: bool
) -> Beginning:
    """Chooses for a run that begins how outputs are kept, where memory has a bound, and what is compiled, if `weigh` is true.

    Raises UsageError, BucketError.
    """
    weigh = weigh and settings.render.compile
    keeps = settings.render.keep == CHOSEN or settings.render.broadcast is None
    if not weigh and not keeps:
        return AS_ASKED
    # Both ways are weighed by the seconds of compiled blocks.
    planner = _planner(replace(settings, render=replace(settings.render, weighed={})), rules, bucket)
    keeps = keeps and planner.memory.size_bytes is not None
    if not weigh and not keeps:
        return AS_ASKED
    choice, weighed = planner.begin(accepted)
    return Beginning(
        kept=choice.kept if keeps else {}, told=choice.told if keeps else {}, weighed=weighed if weigh else {}
    )


def _planner(settings: RunSettings, rules: RunRules, bucket: Bucket) -> WorkPlanner:
    precision, float8, file = settings.render.precision, settings.render.float8, settings.machines.measured
    before = read_measured_jobs(bucket, precision=precision, float8=float8)
    measured = read_measured_file(file, precision=precision, float8=float8) if file else before
    own = settings.machines.figures
    source = FiguresSource(
        device=_device(settings, before),
        own=read_figures_file(own, FAMILIES) if own is not None else {},
        fast_decode=settings.render.decode == "fast",
        on_gpu=settings.render.device == "cuda",
    )
    return WorkPlanner(
        times=ClipTimes(
            ClipCosts(rules, precision, source, float8=float8, eager=_eager(settings, rules)),
            measured,
            render=settings.render,
        ),
        rules=rules,
        machines=settings.machines,
        render=settings.render,
        memory=_device_memory(settings, before.device_bytes),
    )


def _eager(settings: RunSettings, rules: RunRules) -> list[str]:
    render = settings.render
    return [name for name in rules.families if render.device == "cuda" and not render.compiles(name)]


def _device(settings: RunSettings, before: MeasuredTimes) -> str | None:
    if settings.render.device == "cpu":
        return CPU
    if settings.machines.gpu_kind is not None:
        return settings.machines.gpu_kind
    return before.device or (gpu_kind() if settings.machines.cluster == "local" else None)


def _device_memory(settings: RunSettings, of_earlier_jobs: float | None) -> DeviceMemory:
    asked = settings.machines.gpu_memory_gb
    if asked is not None:
        return DeviceMemory(size_bytes=asked * GB, source="--gpu-memory")
    if settings.render.device == "cpu":
        return DeviceMemory(size_bytes=None, source="ranks on a CPU share the machine's")
    if of_earlier_jobs is not None:
        return DeviceMemory(size_bytes=of_earlier_jobs, source="what earlier jobs had")
    if settings.machines.cluster == "local" and (told := gpu_memory_bytes()) is not None:
        return DeviceMemory(size_bytes=told, source="what the driver says")
    return DeviceMemory(size_bytes=None, source="not known; say --gpu-memory GB")
