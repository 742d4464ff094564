"""How much faster a run's clips were by reuse, how good they are beside those without, and which have alarms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jobs.quality.alarm_counts import alarm_text
from jobs.quality.guard import guard_summary, guard_text
from jobs.quality.headline import quality_summary, quality_text
from jobs.reports.report_speedup import baselines_of, difference
from jobs.store.bucket import Bucket
from pipeline.run.bill import bill_text, run_bill
from pipeline.run.report_index import IndexTotals
from pipeline.run.report_rows import FOR_TRIES, UNSIGNED, record_row, told_rows
from pipeline.run.reports_of_now import reports_of_now
from pipeline.run.state import Progress, clip_id
from pipeline.screen import counted

Json = dict[str, Any]
MOST_REPORTS = 500
"""Reports of jobs, the newest, that `status` reads: it is to answer within seconds. `report` reads all."""
MOST_RECORDS = 500
"""Records of clips that are in no report yet."""


def run_quality(bucket: Bucket, progress: Progress) -> Json:
    """Returns how a run's clips are, from the reports of its jobs and the records of clips that are in none yet.

    `jobs`: how many reports were read. Raises BucketError.
    """
    reports, _ = bucket.job_reports(newest=MOST_REPORTS)
    rows = {key: row for key, row in told_rows(reports).items() if key in progress.recorded}
    untold = sorted(progress.recorded - rows.keys())[:MOST_RECORDS]
    rows |= {key: record_row(record) for key, record in bucket.records(untold).items()}
    totals, of_now = IndexTotals(), reports_of_now(reports, progress.recorded)
    for key, row in sorted(rows.items()):
        totals.add(clip_id(key), row)
    return {
        "jobs": len(reports),
        "speedup": speedup_over(of_now, totals),
        "quality": quality_over(of_now),
        "alarms": totals.alarms.facts(),
        "guard": guard_summary(of_now),
        "clip_warnings": totals.warnings.facts(),
        "c2pa": totals.c2pa,
        "bill": run_bill(bucket, reports, rendered=len(progress.recorded)),
    }


def quality_over(reports: Iterable[Json]) -> Json | None:
    """Returns what the clips of all jobs that were rendered twice say together; None where there is none."""
    return quality_summary(baseline for report in reports for baseline in baselines_of(report))


def speedup_over(reports: Sequence[Json], totals: IndexTotals) -> Json:
    """Returns both factors of a run and why they differ.

    `reports`: what `reports_of_now` returns, of clips rendered twice; `totals`: over all clips, of their own full steps.
    """
    measured, derived = measured_speedup(reports), _derived(totals, reports)
    return {"measured": measured, "derived": derived, "difference": difference(measured, derived)}


def _derived(totals: IndexTotals, reports: Sequence[Json]) -> Json | None:
    if not totals.compared_s:
        return None
    of_jobs = [each for report in reports if (each := report["speedup"].get("derived")) and each["pab_factor"]]
    return {
        "pab_factor": round(totals.baseline_s / totals.compared_s, 4),
        "clips": totals.compared_clips,
        "denoise_s": round(totals.compared_s, 3),
        "baseline_denoise_s": round(totals.baseline_s, 3),
        "full_step_s": _full_step_s(of_jobs),
    }


def measured_speedup(reports: Iterable[Json]) -> Json | None:
    """Returns the factor over the clips of all jobs that were rendered twice, summed, so that long clips weigh more."""
    pairs = [pair for report in reports if (pair := report["speedup"].get("measured")) and pair["pab_factor"]]
    found = _summed(pairs)
    if found is None:
        return None
    once = sum(pair.get("samples") == 1 for pair in pairs)
    return found | {"note": f"in {counted(once, 'job')} some steps were timed once only" if once else None}


def _summed(factors: Sequence[Json]) -> Json | None:
    with_broadcast = sum(each["denoise_s"] for each in factors)
    without = sum(each["baseline_denoise_s"] for each in factors)
    if not with_broadcast:
        return None
    return {
        "pab_factor": round(without / with_broadcast, 4),
        "clips": sum(each["clips"] for each in factors),
        "denoise_s": with_broadcast,
        "baseline_denoise_s": without,
        "full_step_s": _full_step_s(factors),
    }


def _full_step_s(factors: Sequence[Json]) -> float | None:
    """Returns the mean seconds of a step that computes everything; None where a report of before does not tell it."""
    told = [(each["baseline_denoise_s"], each.get("full_step_s")) for each in factors]
    steps = sum(total_s / step_s for total_s, step_s in told if step_s)
    return (
        round(sum(total_s for total_s, _ in told) / steps, 5) if steps and all(step_s for _, step_s in told) else None
    )


def told_lines(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns what is told of a run's quality, line by line, each with its name."""
    speedup = told["speedup"]
    factors = [
        f"{each['pab_factor']:.2f} x {how} of {counted(each['clips'], 'clip')}"
        + (f" ({each['note']})" if each.get("note") else "")
        for how in ("measured", "derived")
        if (each := speedup[how])
    ]
    lines = [("speedup", "; ".join(factors))] if factors else []
    if speedup.get("difference"):
        lines.append(("", speedup["difference"]))
    if factors or told["quality"]:
        lines.append(("quality", quality_text(told["quality"])))
    if told.get("guard"):
        lines.append(("guard", guard_text(told["guard"])))
    if told["alarms"]["looked_at"]:
        lines.append(("alarms", alarm_text(told["alarms"])))
    if signed := signed_text(told.get("c2pa") or {}):
        lines.append(("signed", signed))
    if told.get("bill"):
        lines.append(("cost", bill_text(told["bill"])))
    return lines


def signed_text(counts: Mapping[str, int]) -> str:
    """Returns how many videos carry a C2PA manifest; nothing where none does. `counts`: clips by `ClipRow.c2pa`."""
    total, tries = sum(counts.values()), counts.get(FOR_TRIES, 0)
    signed = total - counts.get(UNSIGNED, 0)
    if not signed:
        return ""
    trusted = f"; {tries:,} of them with a certificate for tries, which readers do not trust" if tries else ""
    return f"{signed:,} of {counted(total, 'video')} by a C2PA manifest{trusted}"
