"""Metrics and spans of a run: the file that Prometheus reads, and what an OpenTelemetry collector gets."""

from __future__ import annotations

import gzip
import http.server
import json
import logging
import math
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_service
from prometheus_client import parser

from jobs.store import layout
from jobs.store.bucket import Bucket
from pipeline.run.bill import Budget, Prices
from pipeline.run.run_metrics import RunMetrics, Standing
from pipeline.run.run_signals import RunSignals
from pipeline.run.state import NOTHING_KNOWN, Progress, read_progress
from pipeline.screen import Screen
from pipeline.signals import table
from pipeline.signals.otlp import Otlp, check_otlp, read_otlp
from pipeline.signals.prometheus_file import PrometheusFile, check_metrics_file
from pipeline.signals.table import METRICS, Metric
from tests.pipeline.command import Command, records
from tests.pipeline.conftest import SubmittedTwice

Manifest = Callable[..., Path]
Json = dict[str, Any]
SECRET = "very-secret"
BOARD = Path(__file__).parent.parent.parent / "docs/grafana.json"


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes what OTLP sends: each request's path, headers and decoded message."""

    got: list[tuple[str, Json, Any]]
    answer = 200

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        kind = (
            trace_service.ExportTraceServiceRequest
            if "traces" in self.path
            else metrics_service.ExportMetricsServiceRequest
        )
        message = kind()
        message.ParseFromString(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
        self.got.append((self.path, dict(self.headers), message))
        self.send_response(self.answer)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def collector(request: pytest.FixtureRequest) -> Iterator[tuple[str, list[tuple[str, Json, Any]]]]:
    got: list[tuple[str, Json, Any]] = []
    kind = type("OneCollector", (Collector,), {"got": got, "answer": getattr(request, "param", 200)})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/{SECRET}", got
    server.shutdown()
    server.server_close()


def samples(path: Path) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Returns name and labels (without `run_id`, which all have) -> value."""
    found = {}
    for family in parser.text_string_to_metric_families(path.read_text()):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("run_id"), "two files with the same series are refused by node_exporter"
            found[sample.name, frozenset(labels.items())] = sample.value
    return found


def spans_of(got: list[tuple[str, Json, Any]]) -> list[Any]:
    messages = [message for path, _, message in got if path.endswith("/v1/traces")]
    return [
        span
        for message in messages
        for each in message.resource_spans
        for scope in each.scope_spans
        for span in scope.spans
    ]


def points_of(got: list[tuple[str, Json, Any]]) -> dict[str, Any]:
    """Returns the last points of each metric by its name."""
    messages = [message for path, _, message in got if path.endswith("/v1/metrics")]
    found = [
        metric for each in messages[-1].resource_metrics for scope in each.scope_metrics for metric in scope.metrics
    ]
    return {metric.name: metric for metric in found}


def attributes(span: Any) -> Json:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def test_a_submit_writes_metrics_and_sends_spans_and_its_secrets_are_nowhere(
    command: Command,
    manifest: Manifest,
    tmp_path: Path,
    collector: tuple[str, list[tuple[str, Json, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, got = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-key={SECRET}-key")
    output, file = tmp_path / "out", tmp_path / "run.prom"
    flags = ("--metrics-file", str(file), "--otlp", url, "--price-per-gpu-hour", "3600", "--budget", "1e6")
    ran = command.run(*command.submit_words(manifest(2), output, *flags))
    assert (ran.returncode, ran.stderr.count("OTLP")) == (0, 0), ran.stderr

    found, rendered = samples(file), records(output)
    demo = frozenset({("model", "demo")})
    seconds = sum(record["elapsed_s"] for record in rendered.values())
    assert found["pab_clips_rendered_total", demo] == found["pab_clip_duration_seconds_count", demo] == 2
    assert found["pab_clip_duration_seconds_sum", demo] == pytest.approx(seconds)
    assert found["pab_frames_total", demo] == 16
    assert found["pab_video_bytes_total", demo] == sum(record["video"]["size_bytes"] for record in rendered.values())
    assert found["pab_clip_attempts_total", frozenset()] == 2
    assert found["pab_run_clips", frozenset({("state", "rendered")})] == 2
    assert found["pab_run_active", frozenset()] == 0
    gpu_s = found["pab_gpu_seconds_total", frozenset()]
    assert found["pab_cost_total", frozenset()] == pytest.approx(gpu_s)
    assert found["pab_budget_spent_ratio", frozenset()] == pytest.approx(gpu_s / 1e6)
    assert not [name for name, _ in found if "energy" in name or name.endswith("_created")]

    spans = spans_of(got)
    (run,), jobs = ([span for span in spans if span.name == name] for name in ("run", "job"))
    clips = {attributes(span)["pab.clip.id"]: span for span in spans if span.name == "clip"}
    assert sorted(clips) == ["c0", "c1"]
    assert {job.parent_span_id for job in jobs} == {run.span_id}
    assert {clip.parent_span_id for clip in clips.values()} <= {job.span_id for job in jobs}
    assert {span.trace_id for span in spans} == {run.trace_id}
    one = clips["c0"]
    assert (one.end_time_unix_nano - one.start_time_unix_nano) / 1e9 == pytest.approx(
        rendered["c0"]["elapsed_s"], abs=0.05
    )
    assert attributes(one)["pab.stage.denoise_s"] == rendered["c0"]["seconds"]["denoise"]
    points = points_of(got)
    assert (
        points["pab.clips.rendered"].sum.data_points[0].as_double
        + points["pab.clips.rendered"].sum.data_points[0].as_int
        == 2
    )
    assert points["pab.clip.duration"].histogram.data_points[0].sum == pytest.approx(seconds)
    assert (points["pab.clip.duration"].unit, points["pab.video"].unit) == ("s", "By")

    assert {headers["x-key"] for _, headers, _ in got} == {f"{SECRET}-key"}
    assert {path for path, _, _ in got} == {f"/{SECRET}/v1/traces", f"/{SECRET}/v1/metrics"}
    written = [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert (written, SECRET in ran.stdout + ran.stderr) == ([], False)


def test_a_submit_that_has_nothing_to_do_sets_right_what_a_killed_one_left(
    command: Command, submitted_twice: SubmittedTwice, tmp_path: Path
) -> None:
    output, file = shutil.copytree(submitted_twice.output, tmp_path / "out"), tmp_path / "run.prom"
    run_id = submitted_twice.run["run_id"]
    file.write_text(f'# TYPE pab_run_active gauge\npab_run_active{{run_id="{run_id}"}} 1.0\n')
    code, document = command.submit(submitted_twice.manifest, output, "--metrics-file", str(file))
    assert (code, document["rendered_now"]) == (0, 0)
    found = samples(file)
    assert found["pab_run_active", frozenset()] == 0
    assert found["pab_run_clips", frozenset({("state", "rendered")})] == 3
    assert found["pab_run_clips", frozenset({("state", "left")})] == 0


@pytest.mark.parametrize("collector", [401], indirect=True)
def test_a_collector_that_says_no_is_told_once_without_its_secret(
    collector: tuple[str, list[tuple[str, Json, Any]]],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    url, got = collector
    otlp = Otlp(url, {}, facts={"service.name": "test"}, screen=Screen())
    otlp.end(otlp.begin("run", 1, facts={}), 2)
    otlp.take(table.ATTEMPTS, 1, {"run_id": "0"})
    logging.getLogger("urllib3.connectionpool").warning("Failed to parse headers (url=%s)", url)
    otlp.close()
    otlp.flush()
    assert len(got) == 2
    said = capsys.readouterr().err
    assert said == "OTLP: what the run measures does not reach 127.0.0.1: it answers 401; the run goes on\n"
    assert caplog.text == ""


@pytest.mark.parametrize(
    "text",
    [
        "collector:4318",
        "grpc://a:4317",
        f"http://a/{SECRET} b",
        f"https://me:{SECRET}@a:4318",
        f"http://a/?key={SECRET}",
    ],
)
def test_what_is_no_collector_is_refused_without_quoting_it(text: str, command: Command, manifest: Manifest) -> None:
    ran = command.run(*command.submit_words(manifest(1), Path("out"), "--otlp", text))
    assert (ran.returncode, SECRET in ran.stderr + ran.stdout) == (2, False)
    assert "error: --otlp needs a URL such as http://collector.example.org:4318" in ran.stderr


def test_the_usual_variables_count_only_if_they_are_asked_for_and_are_checked() -> None:
    assert (read_otlp("env"), read_otlp("http://a:4318/")) == ("env", "http://a:4318")
    check_otlp("http://a:4318", {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    with pytest.raises(ValueError, match="OTEL_EXPORTER_OTLP_COMPRESSION='zip'; allowed: none, gzip, deflate"):
        check_otlp("http://a:4318", {"OTEL_EXPORTER_OTLP_COMPRESSION": "zip"})
    with pytest.raises(ValueError, match="only http/protobuf can be sent"):
        check_otlp("env", {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    with pytest.raises(
        ValueError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT needs a URL .*, without a user's name"
    ) as refused:
        check_otlp("env", {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://me:{SECRET}@a"})
    assert SECRET not in str(refused.value)


def test_a_metrics_file_needs_a_name_that_is_read_a_folder_and_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, manifest: Manifest
) -> None:
    for name, needed in (("run.txt", "needs a name that ends in .prom"), ("no/run.prom", "there is no folder")):
        with pytest.raises(ValueError, match=needed):
            check_metrics_file(tmp_path / name)
    for module in ("prometheus_client", "opentelemetry.exporter.otlp.proto.http"):
        monkeypatch.setitem(sys.modules, module, None)
    for flags, extra in ((("--metrics-file", str(tmp_path / "run.prom")), "metrics"), (("--otlp", "env"), "otlp")):
        ran = command.run(*command.submit_words(manifest(1), tmp_path / "out", *flags))
        assert (ran.returncode, f"pip install 'pab-pipeline[{extra}]'" in ran.stderr) == (2, True), ran.stderr
    assert not (tmp_path / "out").exists()


def test_a_file_that_cannot_be_written_is_told_once_and_is_written_again_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "textfile"
    file = PrometheusFile(folder / "run.prom", Screen())
    file.take(table.ATTEMPTS, 2, {"run_id": "0"})
    file.flush()
    file.flush()
    assert capsys.readouterr().err.count("metrics cannot be written to") == 1
    folder.mkdir()
    file.flush()
    assert [path.name for path in folder.iterdir()] == ["run.prom"]
    assert samples(folder / "run.prom") == {("pab_clip_attempts_total", frozenset()): 2}


class Kept:
    """A meter that keeps what it takes."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, float, Json]] = []

    def take(self, metric: Metric, value: float, labels: Any) -> None:
        self.taken.append((metric.stem, value, {name: each for name, each in labels.items() if name != "run_id"}))

    def flush(self) -> None:
        return


def record(name: str, **changes: object) -> Json:
    return {
        "clip_id": name, "digest": "0a", "video": {"path": f"renders/{name}.mp4", "sha256": "", "size_bytes": 5},
        "plan": {}, "steps": {}, "seconds": {"denoise": 1.5}, "elapsed_s": 2.0, "job": {"shard": 0},
        "clip": {"model": "demo"}, "attempt": 1,
    } | changes  # fmt: skip


def progress_of(bucket: Bucket) -> Progress:
    return read_progress(bucket, None, 2)


def test_only_what_ends_after_the_first_look_is_counted_once_whatever_a_bucket_holds(tmp_path: Path) -> None:
    bucket, kept = Bucket(str(tmp_path)), Kept()
    budget = Budget(prices=Prices(), before_s=0.0)
    metrics = RunMetrics([kept], budget, run_id="r", output="o", version="v")
    signals = RunSignals(bucket=bucket, screen=Screen(), metrics=metrics)
    bucket.create_json(layout.record("old.0a"), record("old"))
    standing = Standing(num_clips=4)
    signals.look(progress_of(bucket), standing)
    bucket.create_json(layout.record("new.0a"), record("new", energy={"joules": 120.5, "gpus": 2}))
    # Whoever can write to the bucket must not make a thousand series, nor end the driver.
    hostile = record("bad", clip={"model": 7}, seconds={"x\n": 1e999, "y" * 99: -1, "encode": 2}, elapsed_s=math.nan)
    (tmp_path / "records/bad.0a.json").write_text(json.dumps(hostile))
    failure = {"stage": "decode", "error": "E", "message": "m", "attempt": 2, "job": {"shard": 0}}
    bucket.create_json(layout.failure("c.0a", 2), failure)
    for _ in range(2):
        signals.look(progress_of(bucket), standing)
    signals.close()
    counted = [taken for taken in kept.taken if taken[0].startswith("clip") or taken[0] == "frames"]
    assert counted == [
        ("clips_rendered", 1, {"model": "other"}), ("clip_attempts", 1, {}), ("frames", 0, {"model": "other"}),
        ("clip_duration", 0, {"model": "other"}), ("clip_stage", 0, {"model": "other", "stage": "other"}),
        ("clip_stage", 0, {"model": "other", "stage": "other"}),
        ("clip_stage", 2, {"model": "other", "stage": "encode"}),
        ("clips_rendered", 1, {"model": "demo"}), ("clip_attempts", 1, {}), ("frames", 0, {"model": "demo"}),
        ("clip_duration", 2, {"model": "demo"}), ("clip_stage", 1.5, {"model": "demo", "stage": "denoise"}),
        ("clip_energy", 120.5, {"model": "demo"}),
        ("clips_failed", 1, {"stage": "decode"}), ("clip_attempts", 2, {}),
    ]  # fmt: skip
    assert [value for stem, value, _ in kept.taken if stem == "run_active"][-2:] == [1, 0]


def test_without_a_meter_nothing_is_read(tmp_path: Path) -> None:
    signals = RunSignals(bucket=Bucket(str(tmp_path / "gone")), screen=Screen())
    signals.look(NOTHING_KNOWN, Standing(num_clips=1))
    signals.close()
    assert not signals.is_on


def test_names_are_those_of_prometheus_conventions() -> None:
    for metric in METRICS:
        assert metric.family.startswith("pab_")
        assert metric.help.endswith(".")
        assert not metric.family.endswith(("_total", "_count", "_sum", "_bucket"))
    assert len({metric.family for metric in METRICS}) == len(METRICS)


def queries(board: Json) -> list[str]:
    targets = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    return targets + [str(variable["query"]) for variable in board["templating"]["list"] if variable["type"] == "query"]


def test_the_board_asks_for_metrics_that_are_written_and_for_all_of_them() -> None:
    import re

    text = "\n".join(queries(json.loads(BOARD.read_text())))
    asked = set(re.findall(r"\bpab_[a-z_]+", text))
    written = {series: metric for metric in METRICS for series in metric.series}
    assert asked <= written.keys()
    assert {written[series] for series in asked} == set(METRICS)


def test_the_board_can_be_imported_anywhere() -> None:
    board = json.loads(BOARD.read_text())
    assert board["id"] is None
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    sources = [panel["datasource"]["uid"] for panel in board["panels"] if panel["type"] != "row"]
    assert set(sources) == {"${datasource}"}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_the_page_lists_every_metric_with_its_labels() -> None:
    page = (BOARD.parent / "metrics.md").read_text()
    for metric in METRICS:
        name = metric.series[0] if metric.kind != "histogram" else metric.family
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        assert f"| `{name}` | {metric.kind} | {labels} |" in page, metric.family


@pytest.mark.parametrize(
    "flags", [("--metrics-file", "run.prom"), ("--otlp", "http://a:4318"), ("--notify", "mailto:me@site.org")]
)
def test_what_a_driver_does_is_refused_where_there_is_none(
    flags: tuple[str, str], command: Command, manifest: Manifest
) -> None:
    words = ["submit", str(manifest(1)), "--output", "out", "--cluster", "slurm", "--device", "cpu", "--detach"]
    ran = command.run(*words, *flags)
    assert (ran.returncode, f"error: {flags[0]} needs a driver, and with --detach there is none" in ran.stderr) == (
        2, True,
    )  # fmt: skip
