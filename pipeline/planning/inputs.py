"""What a plan is made from: prices of clips, times that were measured before, and the kind and memory of the devices."""

from __future__ import annotations

from pathlib import Path

from cluster.devices import gpu_kind, gpu_memory_bytes
from jobs.settings import CHOSEN
from jobs.store.bucket import Bucket
from pab.families import FAMILIES
from pipeline.planning.clip_times import ClipTimes
from pipeline.planning.cost import ClipCosts
from pipeline.planning.figures import CPU, FiguresSource, read_figures_file
from pipeline.planning.measured import MeasuredTimes, read_measured_file, read_measured_jobs
from pipeline.planning.memory import GB
from pipeline.planning.mesh import MeshChoice
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


def choose_kept(settings: RunSettings, rules: RunRules, accepted: Path, bucket: Bucket) -> MeshChoice | None:
    """Chooses for a run that begins how outputs are kept; None where there is nothing to choose, or memory has no bound.

    Raises UsageError, BucketError.
    """
    if settings.render.keep != CHOSEN and settings.render.broadcast is not None:
        return None
    planner = _planner(settings, rules, bucket)
    return None if planner.memory.size_bytes is None else planner.choose(accepted)


def _planner(settings: RunSettings, rules: RunRules, bucket: Bucket) -> WorkPlanner:
    precision, float8, file = settings.render.precision, settings.render.float8, settings.machines.measured
    before = read_measured_jobs(bucket, precision=precision, float8=float8)
    measured = read_measured_file(file, precision=precision, float8=float8) if file else before
    own = settings.machines.figures
    source = FiguresSource(
        device=_device(settings, before),
        own=read_figures_file(own, FAMILIES) if own is not None else {},
        fast_decode=settings.render.decode == "fast",
    )
    return WorkPlanner(
        times=ClipTimes(ClipCosts(rules, precision, source, float8=float8), measured),
        rules=rules,
        machines=settings.machines,
        render=settings.render,
        memory=_device_memory(settings, before.device_bytes),
    )


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
