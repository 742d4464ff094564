"""A job's report as one page."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from jobs.reports.html import page, table, tiles
from jobs.reports.report_svg import bar_chart, block_picture, plan_picture

Json = dict[str, Any]
_MAX_ROWS = 500


def report_page(report: Json, strip_png: bytes | None) -> str:
    """Returns the page of a report as `build_report` gives it. `strip_png`: frames without broadcast over those with."""
    sections = [
        _head(report),
        _broadcasts(report),
        *_plans(report),
        _baseline(report, strip_png),
        _counts(report),
        _times(report),
    ]
    sections += [_clips(report), _starts(report)]
    return page(f"{report['job']} of {report['run_id']}", sections)


def _head(report: Json) -> str:
    counts, speedup = report["counts"], report["speedup"]
    measured, derived = speedup["measured"], speedup["derived"]
    factor = "no clip uses broadcast" if not speedup["broadcast_clips"] else "not known"
    if derived:
        factor = f"{derived['pab_factor']:.2f}x derived"
    if measured:
        factor = f"{measured['pab_factor']:.2f}x measured"
    per_hour = report["throughput"]["clips_per_gpu_hour"]
    busy = report["throughput"]["device_busy_share"]
    figures = {
        "clips per GPU-hour": "-" if per_hour is None else _number(per_hour),
        "device busy, clip to clip": "-" if busy is None else f"{busy:.1%}",
        "speedup of denoising": factor,
        "clips rendered": f"{counts['rendered']} of {counts['clips']}",
        "failed": str(counts["failed"]),
        "warm-up": _seconds(report["warm_up_s"]),
        "kept outputs, peak": _bytes(report["kept_bytes_peak"]),
    }
    where = f"run {report['run_id']}, mesh {report['mesh']}, {_many(report['ranks'], 'rank')}, made {report['made_at']}"
    return f"<h1>{escape(report['job'])}</h1><p>{escape(where)}</p>{tiles(figures.items())}"


def _plans(report: Json) -> Iterable[str]:
    for plan in report["plans"]:
        chart = bar_chart(plan["patterns"], plan["step_median_s"])
        if "blocks" in plan:
            title = f"{plan['broadcast']}, {_many(plan['clips'], 'clip')}"
            told = (
                f"Decided while rendering, {_many(plan['different'], 'different plan')}; drawn is what was computed of clip "
                f"{plan['clip_id']}."
            )
            yield f"<h2>{escape(title)}</h2><p>{escape(told)}</p>{block_picture(plan['blocks'])}{chart}"
        else:
            title = f"Plan {plan['broadcast']} ({plan['digest']}), {_many(plan['clips'], 'clip')}"
            yield f"<h2>{escape(title)}</h2>{plan_picture(plan['kinds'], plan['patterns'])}{chart}"


def _broadcasts(report: Json) -> str:
    rows = [
        (row["broadcast"], row["decided"], str(row["clips"]), f"{row['computed_share']:.1%}",
         _times_as_fast(row["factor_derived"]), _times_as_fast(row["factor_measured"]), _noise(row),
         "-" if row["ssim"] is None else f"{row['ssim']:.4f}")
        for row in report["broadcasts"]
    ]  # fmt: skip
    head = ("broadcast", "decided", "clips", "calls computed", "derived", "measured", "PSNR", "SSIM")
    return "<h2>Ways of broadcasting</h2>" + table(head, rows, numbers=range(2, 8))


def _times_as_fast(factor: float | None) -> str:
    return "-" if factor is None else f"{factor:.2f}x"


def _noise(compared: Json) -> str:
    if compared["ssim"] is None:
        return "-"
    return "the same frames" if compared["identical"] else f"{compared['psnr_db']:.2f} dB"


def _baseline(report: Json, strip_png: bytes | None) -> str:
    rows = []
    for name, found in report["speedup"].items():
        if isinstance(found, dict):
            rows.append(
                (name, f"{found['pab_factor']:.2f}x", _seconds(found["baseline_denoise_s"]),
                 _seconds(found["denoise_s"]), str(found["clips"]), found["how"])
            )  # fmt: skip
    if not rows:
        return "<h2>Without broadcast</h2><p>Nothing to compare: no clip of this job reuses anything.</p>"
    html = "<h2>Without broadcast</h2>" + table(
        ("baseline", "PAB factor", "denoise without", "denoise with", "clips", "how"), rows, numbers=range(1, 5)
    )
    for baseline in report["baselines"]:
        noise = _noise(baseline) + ("" if baseline["identical"] else " PSNR")
        html += (
            f"<p>Clip {escape(baseline['clip_id'])} ({escape(baseline['clip']['broadcast'])}) against itself without "
            f"broadcast, same seed: {noise}, SSIM {baseline['ssim']:.4f}.</p>"
        )
    if strip_png is not None:
        data = base64.b64encode(strip_png).decode()
        html += (
            f"<figure><img alt='frames without broadcast (above) and with it (below)' src='data:image/png;base64,{data}'/>"
            "<figcaption>The first of these clips: above without broadcast, below with it.</figcaption></figure>"
        )
    return html


def _counts(report: Json) -> str:
    rows = [
        (f"{kind} calls", str(n["total"]), str(n["planned"]), str(n["counted"]), _share(n["counted"], n["total"]))
        for kind, n in report["calls"]["by_kind"].items()
        if n["total"]
    ]
    sent = report["all_to_alls"]
    rows.append(
        ("all-to-alls", str(sent["without_broadcast"]), str(sent["planned"]), str(sent["counted"]),
         _share(sent["counted"], sent["without_broadcast"]))
    )  # fmt: skip
    rows.append(
        ("all-to-all bytes", _bytes(sent["bytes_without_broadcast"]), "", _bytes(sent["bytes"]),
         _share(sent["bytes"], sent["bytes_without_broadcast"]))
    )  # fmt: skip
    agree = report["calls"]["agree"] and sent["agree"]
    word = (
        "What was counted is what the plans foretold." if agree else "What was counted is NOT what the plans foretold."
    )
    return (
        "<h2>Planned and counted</h2>"
        + table(("", "without broadcast", "planned", "counted", "done"), rows, numbers=range(1, 5))
        + f"<p class='{'good' if agree else 'bad'}'>{word}</p>"
    )


def _times(report: Json) -> str:
    head = ("", "median", "least", "most", "sum", "clips")
    stages = [(name, *_spread(spread)) for name, spread in report["seconds_by_stage"].items()]
    steps = [(f"step {pattern}", *_spread(spread)) for pattern, spread in report["step_seconds"].items()]
    return "<h2>Seconds</h2>" + _batches(report) + table(head, stages + steps, numbers=range(1, 6))


def _batches(report: Json) -> str:
    """Returns a line for reports of jobs that rendered clips together; there, a clip's seconds are its share."""
    batches = report.get("batches", [])
    if not any(each["size"] > 1 for each in batches):
        return ""
    told = "; ".join(
        f"{each['size']} at once: {_many(each['clips'], 'clip')}, {_seconds(each['denoise_s_per_clip'])} of denoising each"
        for each in batches
    )
    return f"<p>Of clips rendered together each has its share of the seconds. {escape(told)}.</p>"


def _clips(report: Json) -> str:
    rows = []
    for clip in report["clips"][:_MAX_ROWS]:
        factor = clip.get("pab_factor_derived")
        note = clip.get("reason") or "; ".join(clip.get("warnings", ()))
        rows.append(
            (clip["clip_id"], clip["outcome"], clip["broadcast"], clip["size"], str(clip["num_steps"]),
             _seconds(clip.get("denoise_s")), "-" if factor is None else f"{factor:.2f}x",
             _seconds(clip.get("elapsed_s")), note)
        )  # fmt: skip
    more = len(report["clips"]) - len(rows)
    head = (
        "clip",
        "outcome",
        "broadcast",
        "frames x height x width",
        "steps",
        "denoise",
        "PAB, derived",
        "in all",
        "notes",
    )
    tail = f"<p>{more} more clips are in the JSON report.</p>" if more > 0 else ""
    return "<h2>Clips</h2>" + table(head, rows, numbers=range(4, 8)) + tail


def _starts(report: Json) -> str:
    rows = [
        (f"{s['job_id']} start {s['start']}", s["host"], s["device"], str(s["rendered"]), _seconds(s["wall_s"]),
         _seconds(sum(s["load_s"].values())), _seconds(s["warm_up_s"]), _compiled(s.get("compiled")),
         _bytes(s["peak_rss_bytes"]), _bytes(s["peak_cuda_bytes"]),
         ", ".join(f"{name} {version}" for name, version in s["versions"].items()))
        for s in report["starts"]
    ]  # fmt: skip
    head = (
        "start",
        "host",
        "device",
        "rendered",
        "wall",
        "load",
        "warm-up",
        "compiled",
        "memory",
        "GPU memory",
        "versions",
    )
    return "<h2>Starts</h2>" + table(head, rows, numbers=range(3, 10))


def _compiled(compiled: Json | None) -> str:
    if compiled is None:
        return "-"
    found = compiled["cache_hits"], compiled["cache_hits"] + compiled["cache_misses"]
    return f"{_many(compiled['graphs'], 'graph')} in {_seconds(compiled['seconds'])}, {found[0]} of {found[1]} kernels kept"


def _spread(spread: Mapping[str, float]) -> tuple[str, ...]:
    return (*(_seconds(spread[name]) for name in ("median", "min", "max", "sum")), str(int(spread["clips"])))


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.2f} s"


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} TiB"


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"
