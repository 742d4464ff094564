"""All metrics of a run, stated once: Prometheus, OTLP, the Grafana board and the docs have the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

PREFIX = "pab"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric. `stem`: its name without prefix, unit and kind. `labels`: besides `run_id`, which all have."""

    stem: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    unit: Literal["", "seconds", "bytes", "joules", "ratio"] = ""
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def family(self) -> str:
        """The name in Prometheus, of a counter without `_total`."""
        return "_".join(filter(None, (PREFIX, self.stem, self.unit)))

    @property
    def series(self) -> tuple[str, ...]:
        """The names of its series in Prometheus, which queries ask for."""
        if self.kind == "histogram":
            return tuple(f"{self.family}_{part}" for part in ("bucket", "sum", "count"))
        return (f"{self.family}_total" if self.kind == "counter" else self.family,)

    @property
    def instrument(self) -> str:
        """The name in OTLP; what turns OTLP into Prometheus adds unit and kind again."""
        return f"{PREFIX}.{self.stem.replace('_', '.')}"


RUN_INFO = Metric(
    stem="run_info", kind="gauge", labels=("output", "version"), help="Always 1; says what a run is by its labels."
)
RUN_ACTIVE = Metric(
    stem="run_active", kind="gauge", help="1 while the driver of a submit is at work, 0 when it has ended."
)
RUN_UPDATED = Metric(
    stem="run_updated_timestamp",
    kind="gauge",
    unit="seconds",
    help="Unix time at which the driver last said how the run stands.",
)
RUN_CLIPS = Metric(
    stem="run_clips",
    kind="gauge",
    labels=("state",),
    help="Clips of the whole run by state: rendered, failed, running, left.",
)
RUN_JOBS = Metric(
    stem="run_jobs", kind="gauge", labels=("state",), help="Jobs of this submit by state: running, waiting."
)
CLIPS_RENDERED = Metric(
    stem="clips_rendered", kind="counter", labels=("model",), help="Clips that were recorded in this submit."
)
CLIPS_FAILED = Metric(
    stem="clips_failed",
    kind="counter",
    labels=("stage",),
    help="Clips that were given up in this submit, by the stage of their last error.",
)
ATTEMPTS = Metric(
    stem="clip_attempts", kind="counter", help="Attempts of all clips that were recorded or given up in this submit."
)
FRAMES = Metric(stem="frames", kind="counter", labels=("model",), help="Frames of the videos of this submit.")
DURATION = Metric(
    stem="clip_duration",
    kind="histogram",
    unit="seconds",
    labels=("model",),
    buckets=(0.5, 1, 2, 5, 10, 20, 30, 60, 120, 180, 300, 600, 900, 1200, 1800, 3600, 7200),
    help="Seconds of a clip, from the mark of its attempt to its record.",
)
STAGE = Metric(
    stem="clip_stage",
    kind="counter",
    unit="seconds",
    labels=("model", "stage"),
    help="Seconds of clips by stage, such as denoise, decode, encode, upload.",
)
CALLS = Metric(
    stem="site_calls",
    kind="counter",
    labels=("model", "result"),
    help="Calls of sites in denoising by result: computed, or reused by broadcast; of one rank of each clip.",
)
VIDEO_BYTES = Metric(
    stem="video", kind="counter", unit="bytes", labels=("model",), help="Bytes of the videos of this submit."
)
GPU = Metric(
    stem="gpu",
    kind="counter",
    unit="seconds",
    help="Seconds for which jobs of this submit held GPUs, times their GPUs; on CPUs a GPU is a rank.",
)
COST = Metric(
    stem="cost",
    kind="counter",
    help="GPU-hours of this submit times --price-per-gpu-hour, in the currency of the price.",
)
BUDGET = Metric(
    stem="budget_spent", kind="gauge", unit="ratio", help="Share of --budget that all submits of the run have spent."
)
ENERGY = Metric(
    stem="clip_energy",
    kind="histogram",
    unit="joules",
    labels=("model",),
    buckets=(10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6, 3e6, 1e7),
    help="Joules that the GPUs of a clip used for it, where they count them.",
)

METRICS = (
    RUN_INFO, RUN_ACTIVE, RUN_UPDATED, RUN_CLIPS, RUN_JOBS, CLIPS_RENDERED, CLIPS_FAILED, ATTEMPTS, FRAMES, DURATION, STAGE,
    CALLS, VIDEO_BYTES, GPU, COST, BUDGET, ENERGY,
)  # fmt: skip


class Meter(Protocol):
    """Takes the values of a run's metrics."""

    def take(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        """Adds to a counter, sets a gauge, or takes one observation of a histogram. `labels`: all that the metric has."""

    def flush(self) -> None:
        """Hands on what was taken. What does not work is told on the screen, and raises nothing."""
