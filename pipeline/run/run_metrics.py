"""The values of a run's metrics: from its records and failures, and from what its driver knows."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import time
from typing import Any

from pab.families import FAMILIES
from pipeline.run.bill import HOUR_S, Budget
from pipeline.run.state import FailedClip, Progress
from pipeline.signals import table
from pipeline.signals.table import Meter, Metric

OTHER = "other"
"""The label of what nobody of ours has written into a record."""
_MOST_STAGES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What only a driver knows of its run at a moment. `jobs`: name, id and state of each; `gpu_s`: of this submit."""

    num_clips: int
    jobs: Sequence[tuple[str, str, str]] = ()
    gpu_s: float = 0.0

    def num_jobs(self, state: str) -> int:
        """Returns how many jobs are in a state."""
        return sum(each == state for _, _, each in self.jobs)


class RunMetrics:
    """Gives values to meters. `run_id` becomes a label of all of them, `output` and `version` those of `pab_run_info`."""

    def __init__(self, meters: Sequence[Meter], budget: Budget, *, run_id: str, output: str, version: str) -> None:
        self._meters = meters
        self._budget = budget
        self._run_id = run_id
        self._about = {"output": output, "version": version}
        self._gpu_s = 0.0
        self._stages: set[str] = set()

    def stand(self, progress: Progress, standing: Standing, *, active: bool = True) -> None:
        """Takes how the run stands, and hands on all that was taken. `active`: whether the driver is at work."""
        rendered, failed = len(progress.recorded), len(progress.not_rendered)
        running = len(progress.started - progress.recorded)
        self._take(table.RUN_INFO, 1, **self._about)
        self._take(table.RUN_ACTIVE, int(active))
        self._take(table.RUN_UPDATED, time())
        left = max(0, standing.num_clips - rendered - failed - running)
        for state, count in (("rendered", rendered), ("failed", failed), ("running", running), ("left", left)):
            self._take(table.RUN_CLIPS, count, state=state)
        for state in ("running", "waiting"):
            self._take(table.RUN_JOBS, standing.num_jobs(state), state=state)
        self._take_spent(standing.gpu_s)
        for meter in self._meters:
            meter.flush()

    def _take_spent(self, gpu_s: float) -> None:
        more_s, self._gpu_s = max(0.0, gpu_s - self._gpu_s), max(self._gpu_s, gpu_s)
        self._take(table.GPU, more_s)
        prices = self._budget.prices
        if prices.per_gpu_hour is not None:
            self._take(table.COST, more_s / HOUR_S * prices.per_gpu_hour)
        if prices.budget is not None:
            self._take(table.BUDGET, self._budget.share(gpu_s))

    def rendered(self, record: Mapping[str, Any]) -> None:
        """Takes the record of a clip."""
        model = record.get("clip", {}).get("model")
        model = model if model in FAMILIES else OTHER
        self._take(table.CLIPS_RENDERED, 1, model=model)
        self._take(table.ATTEMPTS, _number(record.get("attempt")))
        self._take(table.FRAMES, _number(record["video"].get("num_frames")), model=model)
        self._take(table.VIDEO_BYTES, _number(record["video"]["size_bytes"]), model=model)
        self._take(table.DURATION, _number(record["elapsed_s"]), model=model)
        for stage, seconds in record["seconds"].items():
            self._take(table.STAGE, _number(seconds), model=model, stage=self._stage(stage))
        counted = record.get("counted", {})
        for result in ("computed", "reused"):
            calls = sum(_number(count) for count in counted.get(result, {}).values())
            self._take(table.CALLS, calls, model=model, result=result)
        if joules := _number((record.get("energy") or {}).get("joules")):
            self._take(table.ENERGY, joules, model=model)

    def failed(self, clip: FailedClip) -> None:
        """Takes a clip that was given up."""
        self._take(table.CLIPS_FAILED, 1, stage=self._stage(clip.stage))
        self._take(table.ATTEMPTS, _number(clip.attempt))

    def _take(self, metric: Metric, value: float, **labels: str) -> None:
        for meter in self._meters:
            meter.take(metric, value, {"run_id": self._run_id, **labels})

    def _stage(self, stage: str) -> str:
        # Each label makes a series for ever, so what lies in a bucket must not make thousands.
        if re.fullmatch(r"[a-z_]{1,40}", stage) and (stage in self._stages or len(self._stages) < _MOST_STAGES):
            self._stages.add(stage)
            return stage
        return OTHER


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0 else 0.0
