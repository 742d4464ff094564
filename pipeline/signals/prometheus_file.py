"""A text file of metrics for the textfile collector of Prometheus' node_exporter. No port is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.screen import Screen
from pipeline.signals.table import METRICS, Metric

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric as Family

SUFFIX = ".prom"


def check_metrics_file(path: Path) -> None:
    """Raises ValueError, which says what is needed, if metrics cannot be written to this file."""
    if path.suffix != SUFFIX:
        raise ValueError(f"needs a name that ends in {SUFFIX}: node_exporter reads no other file")
    if not path.parent.is_dir():
        raise ValueError(
            f"there is no folder {path.parent}; make it, or name node_exporter's --collector.textfile.directory"
        )
    if find_spec("prometheus_client") is None:
        raise ValueError("needs the library prometheus-client: pip install 'pab-pipeline[metrics]'")


class PrometheusFile:
    """Keeps metrics in the library's own registry, and writes all of them in one go, so that nobody reads half a file."""

    def __init__(self, path: Path, screen: Screen) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._path, self._screen, self._told = path, screen, False
        self._registry = CollectorRegistry()
        kinds = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}
        self._metrics: dict[Metric, Any] = {}
        for metric in METRICS:
            buckets = {"buckets": metric.buckets} if metric.buckets else {}
            labels = ("run_id", *metric.labels)
            kind = kinds[metric.kind]
            self._metrics[metric] = kind(metric.family, metric.help, labels, registry=self._registry, **buckets)

    def take(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        """See `Meter.take`."""
        child = self._metrics[metric].labels(**labels)
        getattr(child, {"counter": "inc", "gauge": "set", "histogram": "observe"}[metric.kind])(value)

    def flush(self) -> None:
        """Writes the file anew."""
        from prometheus_client import write_to_textfile

        try:
            write_to_textfile(str(self._path), _WithoutTimes(self._registry))
        except OSError as error:
            if not self._told:
                self._screen.note(
                    f"metrics cannot be written to {self._path}, the run goes on without: {error.strerror}"
                )
            self._told = True
        else:
            self._told = False


class _WithoutTimes:
    """The registry's metrics without series that say when the driver has made each counter."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Family]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            if family.samples:
                yield family
