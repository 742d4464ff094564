"""What machines are told of a submit while it is driven: metrics and spans, from records and failures as they appear."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from jobs.store.bucket import Bucket, BucketError
from pipeline.exits import CommandError
from pipeline.run.bill import Budget
from pipeline.run.run import versions
from pipeline.run.run_metrics import RunMetrics, Standing
from pipeline.run.run_spans import RunSpans
from pipeline.run.settings import MachineSettings
from pipeline.run.state import Progress, failed_clips
from pipeline.screen import Screen
from pipeline.signals.otlp import Otlp, check_otlp
from pipeline.signals.prometheus_file import PrometheusFile, check_metrics_file
from pipeline.signals.table import Meter

MOST_READ = 500
"""Records that are read at a look, at most; the others wait for the next one."""
_NONE: frozenset[str] = frozenset()


@dataclass(slots=True, kw_only=True)
class RunSignals:
    """Takes what a driver sees. Without metrics and spans it reads nothing."""

    bucket: Bucket
    screen: Screen
    metrics: RunMetrics | None = None
    spans: RunSpans | None = None
    exit_code: int | None = None
    _recorded: set[str] | None = None
    _failed: set[str] = field(default_factory=set)
    _last: tuple[Progress, Standing] | None = None

    @property
    def is_on(self) -> bool:
        """Whether anybody is told."""
        return self.metrics is not None or self.spans is not None

    def look(self, progress: Progress, standing: Standing) -> None:
        """Takes how the run stands; what was recorded or given up before the first look is of earlier submits.

        Raises BucketError.
        """
        if not self.is_on:
            return
        self._last = progress, standing
        if self._recorded is None:
            self._recorded, self._failed = set(progress.recorded), set(progress.not_rendered)
        self._read_records(progress)
        self._read_failures(progress)
        if self.metrics is not None:
            self.metrics.stand(progress, standing)

    def jobs(self, seen: Sequence[tuple[str, str, str]]) -> None:
        """Takes the name, id and state of each job."""
        if self.spans is not None:
            self.spans.jobs(seen)

    def _read_records(self, progress: Progress) -> None:
        assert self._recorded is not None, "the first look has not been taken"
        new = sorted(progress.recorded - self._recorded)[:MOST_READ]
        records = self.bucket.records(new) if new else {}
        self._recorded.update(new)
        for record in records.values():
            if self.metrics is not None:
                self.metrics.rendered(record)
            if self.spans is not None:
                self.spans.rendered(record)

    def _read_failures(self, progress: Progress) -> None:
        new = frozenset(sorted(progress.not_rendered - self._failed)[:MOST_READ])
        if not new:
            return
        clips = failed_clips(self.bucket, replace(progress, failed=new, quarantined=_NONE), limit=MOST_READ)
        self._failed |= new
        for clip in clips:
            if self.metrics is not None:
                self.metrics.failed(clip)
            if self.spans is not None:
                self.spans.failed(clip)

    def close(self) -> None:
        """Takes what is left to read, and says that the driver has ended."""
        if self._last is None:
            if self.spans is not None:
                self.spans.close(exit_code=self.exit_code)
            return
        progress, standing = self._last
        try:
            while progress.recorded - (self._recorded or set()) or progress.not_rendered - self._failed:
                self.look(progress, standing)
        except BucketError as error:
            self.screen.note(f"metrics lack the last clips: {error}")
        if self.spans is not None:
            self.spans.close(exit_code=self.exit_code)
        if self.metrics is not None:
            self.metrics.stand(progress, standing, active=False)


def check_signals(machines: MachineSettings, variables: Mapping[str, str]) -> tuple[str, str] | None:
    """Returns the name of the setting by which nothing can be told, and what it needs; None if all is well."""
    try:
        name = "metrics_file"
        if machines.metrics_file is not None:
            check_metrics_file(Path(machines.metrics_file))
        name = "otlp"
        if machines.otlp is not None:
            check_otlp(machines.otlp, variables)
    except ValueError as error:
        return name, str(error)
    return None


@contextmanager
def open_signals(
    machines: MachineSettings,
    variables: Mapping[str, str],
    *,
    bucket: Bucket,
    run_id: str,
    budget: Budget,
    screen: Screen,
) -> Iterator[RunSignals]:
    """Opens what `--metrics-file` and `--otlp` ask for, and closes it at the end, whatever the end is."""
    signals = RunSignals(bucket=bucket, screen=screen)
    meters: list[Meter] = []
    about = {"run_id": run_id, "output": bucket.url, "version": versions()["pab-pipeline"]}
    with ExitStack() as stack:
        if machines.metrics_file is not None:
            meters.append(PrometheusFile(Path(machines.metrics_file), screen))
        if machines.otlp is not None:
            facts = {"service.name": "pab-pipeline", "service.version": about["version"], "pab.run_id": run_id}
            otlp = Otlp(machines.otlp, variables, facts=facts, screen=screen)
            stack.callback(otlp.close)
            meters.append(otlp)
            signals.spans = RunSpans(otlp, facts={f"pab.{name}": value for name, value in about.items()})
        if meters:
            signals.metrics = RunMetrics(meters, budget, **about)
        stack.callback(signals.close)
        try:
            yield signals
        except CommandError as error:
            signals.exit_code = int(error.exit_code)
            raise
