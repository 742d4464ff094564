"""Metrics and spans of a run to an OpenTelemetry collector, by OTLP over HTTP. Off unless asked for; no port is opened.

Where it goes and with which headers may be secret: all that the library has to say is kept from the log, and one note says
what does not arrive.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pipeline.screen import Screen
from pipeline.signals.table import METRICS, PREFIX, Metric
from pipeline.signals.urls import host_of, read_url

if TYPE_CHECKING:
    import requests
    from opentelemetry.trace import Span

FROM_VARIABLES = "env"
"""Instead of a URL: where it goes stands in the usual variables OTEL_EXPORTER_OTLP_*."""
CLOSE_S = 15.0
_EXPORT_S = 5
_EVERY_MS = 15_000.0
_MOST_SPANS = 16_384
_EXAMPLE = "http://collector.example.org:4318"
_ENDPOINTS = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)
_LIBRARY, _CARRIER = "opentelemetry", "urllib3.connectionpool"
"""Loggers: of the library, and of what sends its requests, which others use too."""
_COMPRESSIONS = tuple(f"OTEL_EXPORTER_OTLP_{of}COMPRESSION" for of in ("", "TRACES_", "METRICS_"))
_OWN_TIMEOUT = "OTEL_EXPORTER_OTLP_TIMEOUT"
_UNITS = {"": "", "ratio": "1", "seconds": "s", "bytes": "By", "joules": "J"}


def read_otlp(text: str) -> str:
    """Reads where a collector is: its URL, or `env`. Raises ValueError, which says what is needed and does not quote it."""
    if text == FROM_VARIABLES:
        return text
    url = read_url(text, f"{_EXAMPLE}, or {FROM_VARIABLES} for the variables OTEL_EXPORTER_OTLP_*")
    if "?" in url or "#" in url:
        raise ValueError(f"needs a URL such as {_EXAMPLE}, without what follows a ? or #; keys belong into headers")
    return url.rstrip("/")


def check_otlp(url: str, variables: Mapping[str, str]) -> None:
    """Raises ValueError, which says what is needed, if nothing can be sent there."""
    if not all(map(_is_installed, ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http", "requests"))):
        raise ValueError("needs the libraries of OpenTelemetry: pip install 'pab-pipeline[otlp]'")
    for name in _COMPRESSIONS:
        if variables.get(name, "none").strip().lower() not in ("", "none", "gzip", "deflate"):
            raise ValueError(f"cannot go by {name}={variables[name]!r}; allowed: none, gzip, deflate")
    if url != FROM_VARIABLES:
        return
    for name in _ENDPOINTS:
        try:
            read_url(variables.get(name) or _EXAMPLE, _EXAMPLE)
        except ValueError as error:
            raise ValueError(f"{FROM_VARIABLES}: {name} {error}") from error
    protocol = variables.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    if protocol != "http/protobuf":
        raise ValueError(
            f"{FROM_VARIABLES}: OTEL_EXPORTER_OTLP_PROTOCOL={protocol!r}, only http/protobuf can be sent; unset it, and name "
            "the collector's HTTP port (often 4318)"
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a package around it is not there
        return False


class _Heard(logging.Handler):
    """Hears what the library would log, instead of the log. `problem`: what went wrong last, with nothing secret in it."""

    def __init__(self, host: str) -> None:
        super().__init__()
        self.problem = "it cannot be reached"
        self.lost = False
        self._host = host
        self._logger = logging.getLogger(_LIBRARY)
        self._propagated = self._logger.propagate
        self._logger.propagate = False
        self._logger.addHandler(self)
        logging.getLogger(_CARRIER).addFilter(self._is_of_others)

    def emit(self, record: logging.LogRecord) -> None:
        """Takes note of a message that says that something was lost."""
        self.lost = self.lost or record.levelno >= logging.ERROR

    def leave(self) -> None:
        """Lets the library log again as before."""
        self._logger.removeHandler(self)
        self._logger.propagate = self._propagated
        logging.getLogger(_CARRIER).removeFilter(self._is_of_others)

    def _is_of_others(self, record: logging.LogRecord) -> bool:
        return self._host not in record.getMessage()


def _session(heard: _Heard) -> requests.Session:
    """Returns what sends requests, and tells `heard` of answers that say no. It follows no redirect."""
    import requests

    def hear(response: requests.Response, *_: object, **__: object) -> None:
        if not response.ok or response.is_redirect:
            heard.problem = f"it answers {response.status_code}"

    session = requests.Session()
    session.max_redirects = 0
    session.hooks["response"].append(hear)
    return session


def _instruments(meter: Any) -> dict[Metric, Any]:
    makers = {"counter": meter.create_counter, "gauge": meter.create_gauge, "histogram": meter.create_histogram}
    return {
        metric: makers[metric.kind](
            metric.instrument,
            unit=_UNITS[metric.unit],
            description=metric.help,
            **({"explicit_bucket_boundaries_advisory": metric.buckets} if metric.buckets else {}),
        )
        for metric in METRICS
    }


class Otlp:
    """Sends metrics and spans in threads of the library. `facts`: what they are of, as attributes of the resource."""

    def __init__(self, url: str, variables: Mapping[str, str], *, facts: Mapping[str, str], screen: Screen) -> None:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        own, named = url != FROM_VARIABLES, [variables[name] for name in _ENDPOINTS if variables.get(name)]
        self._host = host_of(url if own else next(iter(named), "http://localhost"))
        self._heard, self._screen, self._told = _Heard(self._host), screen, False
        traces, metrics = (f"{url}/v1/{signal}" if own else None for signal in ("traces", "metrics"))
        timeout_s = None if variables.get(_OWN_TIMEOUT) else _EXPORT_S
        resource = Resource.create(facts)
        reader = PeriodicExportingMetricReader(
            OTLPMetricExporter(endpoint=metrics, session=_session(self._heard), timeout=timeout_s),
            export_interval_millis=_EVERY_MS,
        )
        self._meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        self._tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=traces, session=_session(self._heard), timeout=timeout_s)
        self._tracers.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=_MOST_SPANS))
        self._tracer = self._tracers.get_tracer(PREFIX)
        self._instruments = _instruments(self._meters.get_meter(PREFIX))

    def take(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        """See `Meter.take`."""
        getattr(self._instruments[metric], {"counter": "add", "gauge": "set", "histogram": "record"}[metric.kind])(
            value, labels
        )

    def flush(self) -> None:
        """Tells once that something did not arrive; the library sends by itself."""
        if self._heard.lost and not self._told:
            self._told = True
            self._screen.note(
                f"OTLP: what the run measures does not reach {self._host}: {self._heard.problem}; the run goes on"
            )

    def begin(self, name: str, begun_ns: int, *, within: Span | None = None, facts: Mapping[str, Any]) -> Span:
        """Begins a span at a Unix time in nanoseconds; `within`: the span that it is a part of."""
        from opentelemetry.trace import set_span_in_context

        around = None if within is None else set_span_in_context(within)
        return self._tracer.start_span(name, context=around, start_time=begun_ns, attributes=facts)

    def end(
        self, span: Span, ended_ns: int, *, error: str | None = None, facts: Mapping[str, Any] | None = None
    ) -> None:
        """Ends a span; `error`: what went wrong, in words."""
        from opentelemetry.trace import StatusCode

        span.set_attributes(facts or {})
        if error is not None:
            span.set_status(StatusCode.ERROR, error)
        span.end(end_time=ended_ns)

    def close(self) -> None:
        """Sends what is left, within some seconds."""
        closing = [
            threading.Thread(target=each.shutdown, name="otlp-close", daemon=True)
            for each in (self._tracers, self._meters)
        ]
        for thread in closing:
            thread.start()
        end = time.monotonic() + CLOSE_S
        for thread in closing:
            thread.join(max(0.0, end - time.monotonic()))
        self._heard.lost = self._heard.lost or any(thread.is_alive() for thread in closing)
        self.flush()
        if not any(thread.is_alive() for thread in closing):
            self._heard.leave()
