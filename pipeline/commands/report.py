"""`report`: joins the jobs' reports and the records into reports/run.json, run.html and index.parquet."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.quality.guard import guard_summary
from jobs.reports.report_gallery import joined_versions
from jobs.reports.report_headline import headline
from jobs.reports.run_html import gallery_script, run_page
from jobs.store import layout
from jobs.store.bucket import Bucket, DamagedError
from pipeline.exits import Exit, UsageError
from pipeline.planning.measured import joined_measured
from pipeline.run.bill import run_bill
from pipeline.run.quality import quality_over, speedup_over, told_lines
from pipeline.run.report_gallery import GalleryWriter
from pipeline.run.report_index import IndexTotals, write_index
from pipeline.run.report_rows import ClipRow, RunRows, errors_by_id, told_rows
from pipeline.run.reports_of_now import reports_of_now
from pipeline.run.run import Run, load_run, open_bucket
from pipeline.run.run_keys import run_keys
from pipeline.run.state import FailedClip, Progress, failed_clips, read_progress
from pipeline.screen import Screen, counted

Json = dict[str, Any]
MAX_ERRORS = 100_000
"""Failures whose reasons go into the index; a run with more has one reason for most of them."""


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Carries out `report`."""
    bucket = open_bucket(arguments.output)
    known = load_run(bucket)
    keys = run_keys(bucket)
    if keys is None:
        raise UsageError(f"{bucket.url} has no {layout.MANIFEST}: its submit was cut off early; submit again first")
    share_s = None if arguments.share is None else round(3600 * arguments.share)
    document = write_report(bucket, known, keys, share_s=share_s)
    screen.result(document, report_text(document))
    return Exit.OK


def write_report(bucket: Bucket, run: Run, keys: Collection[str], *, share_s: int | None = None) -> Json:
    """Writes the files of a run's report and returns what run.json holds. Raises BucketError.

    `share_s`: for so many seconds a second page shows the clips to others, by signed links; None for no such page.
    """
    progress = read_progress(bucket, keys, settled=True)
    reports, damaged = bucket.job_reports()
    failures = failed_clips(bucket, progress, limit=MAX_ERRORS)
    rows = RunRows(bucket, progress, told_rows(reports))
    by_id = {each.clip_id: each for each in failures}
    gallery, shared = GalleryWriter(bucket=bucket, failures=by_id), None
    if share_s is not None:
        sign = partial(bucket.signed_link, seconds=share_s)
        shared = GalleryWriter(bucket=bucket, failures=by_id, folder=layout.SHARED_GALLERY, sign=sign)
    with tempfile.TemporaryDirectory(prefix="pab-pipeline-") as folder:
        index, manifest = Path(folder) / "index.parquet", Path(folder) / "manifest.parquet"
        # Read in one piece, with retries: the library reads a remote file in many, each of which may fail.
        manifest.write_bytes(bucket.read_present(layout.MANIFEST))
        totals = write_index(
            manifest, rows, errors_by_id(failures), url=bucket.url, path=index, shown=_both(gallery, shared)
        )  # fmt: skip
        bucket.upload(index, layout.INDEX)
    of_now = reports_of_now(reports, progress.recorded)
    document = report_document(bucket.url, run, totals=totals, reports=reports, of_now=of_now, failures=failures)
    document["bill"] = run_bill(bucket, reports, rendered=len(progress.recorded))
    document["damaged"] = [f"{path}: {what}" for path, what in damaged.items()]
    bucket.write(layout.gallery_script(layout.GALLERY), gallery_script())
    bucket.write(layout.RUN_PAGE, run_page(document, gallery.close()).encode())
    # The last: by it a submit knows that all of the report was written.
    bucket.write_json(layout.RUN_REPORT, document)
    if shared is not None and share_s is not None:
        # Only here, not in reports/run.json: whoever reads that needs no link.
        document["shared"] = _write_shared(bucket, document, shared, share_s)
    return document


def is_report_due(bucket: Bucket, progress: Progress) -> bool:
    """Whether a run's report is not there, not whole, of other numbers of clips, or older than the report of a job.

    Raises BucketError.
    """
    if not all(bucket.exists(path) for path in (layout.INDEX, layout.RUN_PAGE)):
        return True
    try:
        document = bucket.read_json(layout.RUN_REPORT)
        outcomes = dict.fromkeys(("rendered", "damaged", "failed", "quarantined"), 0) | document["outcomes"]
        counted = outcomes["rendered"] + outcomes["damaged"], outcomes["failed"] + outcomes["quarantined"]
        told = {job["job"] for job in document["jobs"]}
    except (FileNotFoundError, DamagedError, KeyError, TypeError):
        return True  # it was written by hand, or by an earlier version
    jobs = {name for each in bucket.names("reports") if (name := layout.report_of(each))}
    return counted != (len(progress.recorded), len(progress.not_rendered)) or not jobs <= told


def _both(gallery: GalleryWriter, shared: GalleryWriter | None) -> Callable[[pa.RecordBatch, Sequence[ClipRow]], None]:
    def add(batch: pa.RecordBatch, rows: Sequence[ClipRow]) -> None:
        gallery.add(batch, rows)
        if shared is not None:
            shared.add(batch, rows)

    return add


def _write_shared(bucket: Bucket, document: Json, shared: GalleryWriter, share_s: int) -> str:
    """Writes the page for others and returns the link to it."""
    sign = partial(bucket.signed_link, seconds=share_s)
    bucket.write(layout.gallery_script(layout.SHARED_GALLERY), gallery_script())
    jobs = {job["job"]: sign(layout.job_report(layout.shard_of(job["job"]), "html")) for job in document["jobs"]}
    alarms = document["alarms"]
    # Links of the list of alarms go to files beside the page.
    unlinked = alarms | {"first": [clip | {"video": None} for clip in alarms["first"]]}
    text = run_page(
        document | {"alarms": unlinked},
        shared.close(),
        script=sign(layout.gallery_script(layout.SHARED_GALLERY)),
        job_links=jobs,
        links_end=(datetime.now(UTC) + timedelta(seconds=share_s)).strftime("%Y-%m-%d %H:%M UTC"),
    )
    bucket.write(layout.SHARED_PAGE, text.encode())
    return sign(layout.SHARED_PAGE)


def report_document(
    url: str,
    run: Run,
    *,
    totals: IndexTotals,
    reports: Sequence[Json],
    of_now: Sequence[Json],
    failures: Sequence[FailedClip],
) -> Json:
    """Returns the run's report as JSON values. `reports`: of all jobs; `of_now`: the same, of clips that count now."""
    return {
        "format": 1,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "output": url,
        "run_id": run.run_id,
        "num_clips": run.num_clips,
        "models": _models(run),
        "versions": joined_versions([start for report in reports for start in report["starts"]]),
        "outcomes": totals.outcomes,
        "seconds": {"elapsed": round(totals.elapsed_s, 3), "denoise": round(totals.denoise_s, 3)},
        "speedup": speedup_over(of_now, totals),
        "quality": quality_over(of_now),
        "alarms": totals.alarms.facts(),
        "clip_warnings": totals.warnings.facts(),
        "c2pa": totals.c2pa,
        "guard": guard_summary(of_now),
        "throughput": _throughput(reports),
        # Jobs of an earlier version tell neither.
        "headline": headline([span for report in reports for span in report.get("spans", ())]),
        "exchanges": _exchanges(reports),
        "measured": joined_measured(reports),
        "all_to_alls": _summed(reports, "all_to_alls", ("planned", "counted", "without_broadcast", "bytes")),
        "calls_agree": all(report["calls"]["agree"] for report in reports),
        "jobs": [_job_row(report) for report in reports],
        "failures": [asdict(failure) for failure in failures[:100]],
        "files": {
            "index": f"{url}/{layout.INDEX}", "page": f"{url}/{layout.RUN_PAGE}", "report": f"{url}/{layout.RUN_REPORT}"
        },
    }  # fmt: skip


def _models(run: Run) -> list[Json]:
    return [
        {"model": name, "weights": found.pinned or found.asked, "digest": found.digest, "loras": found.loras_text}
        for name, found in sorted(run.weights.items())
    ]


def _throughput(reports: Sequence[Json]) -> Json:
    counted = [(report["counts"]["rendered"], report["throughput"]["gpu_seconds"]) for report in reports]
    gpu_s = sum(seconds for _, seconds in counted)
    rate = round(3600 * sum(clips for clips, _ in counted) / gpu_s, 3) if gpu_s else None
    # Jobs of an earlier version have measured no share.
    busy = [start["device_busy"] for report in reports for start in report["starts"] if start.get("device_busy")]
    window_s = sum(each["window_s"] for each in busy)
    share = round(sum(each["busy_s"] for each in busy) / window_s, 4) if window_s else None
    return {"clips_per_gpu_hour": rate, "device_busy_share": share, "gpu_seconds": round(gpu_s, 3)}


def _exchanges(reports: Sequence[Json]) -> Json | None:
    told = [found for report in reports if (found := report.get("exchanges"))]
    if not told:
        return None
    exposed_s, hidden_s, denoise_s = (
        sum(float(each[name]) for each in told) for name in ("exposed_s", "hidden_s", "denoise_s")
    )
    return {
        "exposed_s": round(exposed_s, 4),
        "hidden_s": round(hidden_s, 4),
        "exposed_share": round(exposed_s / denoise_s, 4) if denoise_s else None,
    }


def _summed(reports: Iterable[Json], part: str, names: Sequence[str]) -> dict[str, int]:
    return {name: sum(report[part][name] for report in reports) for name in names}


def _job_row(report: Json) -> Json:
    speedup = report["speedup"]
    return {
        "job": report["job"],
        "mesh": report["mesh"],
        **{name: report["counts"][name] for name in ("clips", "rendered", "failed", "left")},
        "measured_pab_factor": speedup["measured"]["pab_factor"] if speedup["measured"] else None,
        "derived_pab_factor": speedup["derived"]["pab_factor"] if speedup["derived"] else None,
        "clips_per_gpu_hour": report["throughput"]["clips_per_gpu_hour"],
        "device_busy_share": report["throughput"].get("device_busy_share"),
        "wall_s": report["throughput"]["wall_s"],
        "starts": len(report["starts"]),
        # Jobs of an earlier version do not say.
        "other_programs": list(
            dict.fromkeys(said for start in report["starts"] for said in start.get("other_programs", ()))
        ),
        "quality": quality_over([report]),
        "alarms": report.get("alarms"),
    }


def report_text(document: Json) -> str:
    """Returns the report in a few lines."""
    outcomes = ", ".join(f"{count:,} {name}" for name, count in sorted(document["outcomes"].items()))
    lines = [f"{counted(document['num_clips'], 'clip')}: {outcomes}"]
    throughput = document["throughput"]
    if throughput["clips_per_gpu_hour"]:
        share = throughput["device_busy_share"]
        busy = "" if share is None else f", devices busy {share:.1%} of the time from clip to clip"
        lines.append(f"clips per GPU-hour: {throughput['clips_per_gpu_hour']:,.1f}{busy}")
    if whole := document["headline"]:
        lines.append(
            f"{whole['frames_per_second']:,.2f} frames a second, {whole['clips_per_gpu_hour']:,.1f} clips per GPU-hour "
            f"on {whole['ranks']:g} ranks, {whole['how']}"
        )
    if waited := document["exchanges"]:
        lines.append(
            f"exchanges: {waited['exposed_s']:,.2f} s waited for, {waited['hidden_s']:,.2f} s beside other work"
        )
    lines += [f"{name:<8} {text}" for name, text in told_lines(document)]
    lines += [f"left out, damaged: {what}" for what in document["damaged"][:10]]
    if "shared" in document:
        lines.append(f"shared   {document['shared']}")
    return "\n".join([*lines, *(f"{name:<8} {url}" for name, url in document["files"].items())])
