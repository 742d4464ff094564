"""`reports/run.html`: the run on one page, readable without a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from pipeline.run.state import clip_id
from pipeline.screen import duration

SHOWN_VIDEOS = 24
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
dl { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 1rem 0; }
dt { opacity: .7; font-size: .85rem; } dd { margin: 0; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .7rem; border-bottom: 1px solid #8884; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } .text td { text-align: left; white-space: normal; }
.videos { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; }
figure { margin: 0; } video { width: 100%; background: #8882; } figcaption { font-size: .8rem; overflow-wrap: anywhere; }
"""
_JOB_COLUMNS = {
    "job": "job",
    "mesh": "mesh",
    "clips": "clips",
    "rendered": "rendered",
    "failed": "failed",
    "left": "left",
    "measured_pab_factor": "speedup measured",
    "derived_pab_factor": "speedup derived",
    "clips_per_gpu_hour": "clips per GPU-hour",
    "device_busy_share": "device busy",
    "wall_s": "wall",
    "starts": "starts",
}


def run_page(document: Mapping[str, Any], recorded: Sequence[str]) -> str:
    """Returns the page. `recorded`: keys of rendered clips, of which the first are shown as videos."""
    body = [
        f"<h1>Run {escape(document['run_id'])}</h1>",
        f"<p>{escape(document['output'])}<br>made {escape(document['made_at'])}</p>",
        _figures(document),
        _speedup_note(document),
        "<h2>Jobs</h2>",
        _jobs(document["jobs"]),
        *_failures(document["failures"]),
        *_videos(recorded),
    ]
    title = f"Run {escape(document['run_id'])}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n<body>'
        + "\n".join(body)
        + "</body></html>\n"
    )


def _figures(document: Mapping[str, Any]) -> str:
    outcomes, speedup = document["outcomes"], document["speedup"]
    figures = {
        "clips per GPU-hour": _number(document["throughput"]["clips_per_gpu_hour"]),
        "devices busy, clip to clip": _share(document["throughput"]["device_busy_share"]),
        "clips": f"{document['num_clips']:,}",
        **{name: f"{count:,}" for name, count in sorted(outcomes.items())},
        "speedup, measured": _factor(speedup["measured"]),
        "speedup, derived": _factor(speedup["derived"]),
        "denoising": duration(document["seconds"]["denoise"]),
    }
    without = document["all_to_alls"]["without_broadcast"]
    if without:
        figures["all-to-alls left"] = f"{document['all_to_alls']['counted'] / without:.0%}"
    return (
        "<dl>" + "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in figures.items()) + "</dl>"
    )


def _speedup_note(document: Mapping[str, Any]) -> str:
    measured, derived = document["speedup"]["measured"], document["speedup"]["derived"]
    parts = []
    if measured:
        parts.append(
            f"Measured: {measured['clips']} clips (one of each broadcast of a job) with and without it, on denoising."
        )
    if derived:
        parts.append(f"Derived: {derived['clips']:,} clips against their own steps that compute everything.")
    return f"<p>{' '.join(parts) or 'No clip of this run reuses anything, so there is no speedup to tell.'}</p>"


def _jobs(jobs: Iterable[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in _JOB_COLUMNS.values())
    rows = "".join(f"<tr>{''.join(_job_cell(job, name) for name in _JOB_COLUMNS)}</tr>" for job in jobs)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _job_cell(job: Mapping[str, Any], name: str) -> str:
    value = job[name]
    if name == "job":
        return f'<td><a href="{escape(value)}.html">{escape(value)}</a></td>'
    if name == "device_busy_share":
        return f"<td>{_share(value)}</td>"
    if name == "wall_s":
        return f"<td>{duration(value)}</td>"
    return f"<td>{escape(value) if isinstance(value, str) else _number(value)}</td>"


def _failures(failures: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    if not failures:
        return
    yield f"<h2>Failed clips</h2><p>The first {len(failures)}; all are in index.parquet.</p>"
    rows = "".join(
        f"<tr><td>{escape(f['clip_id'])}</td><td>{escape(f['stage'])}</td><td>{escape(f['error'])}: "
        f"{escape(f['message'][:500])}</td></tr>"
        for f in failures
    )
    yield f'<div class="scroll"><table class="text"><tbody>{rows}</tbody></table></div>'


def _videos(recorded: Sequence[str]) -> Iterable[str]:
    if not recorded:
        return
    yield f"<h2>Videos</h2><p>{min(len(recorded), SHOWN_VIDEOS)} of {len(recorded):,}.</p>"
    figures = "".join(
        f'<figure><video src="../videos/{escape(name)}.mp4" controls loop muted preload="metadata"></video>'
        f"<figcaption>{escape(name)}</figcaption></figure>"
        for name in map(clip_id, recorded[:SHOWN_VIDEOS])
    )
    yield f'<div class="videos">{figures}</div>'


def _factor(speedup: Mapping[str, Any] | None) -> str:
    return f"{speedup['pab_factor']:.2f} x" if speedup else "-"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
