"""How a run stands, as a document and as text: the end of `submit`, and `status`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jobs.store import layout
from jobs.store.bucket import Bucket
from pipeline.exits import Exit
from pipeline.run.damage import Damage
from pipeline.run.jobs_file import StartedJobs
from pipeline.run.quality import run_quality, told_lines
from pipeline.run.run import Run
from pipeline.run.state import SHOWN_FAILURES, FailedClip, Progress, clip_id, exit_code, failed_clips
from pipeline.screen import Screen, counted, own_command

SHOWN_CHARS = 300
"""Of a failure's reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """What only a submit knows at its end.

    `left_out`: clips recorded before it. `told`: speedup, quality and alarms, where it has just made a report. `dashboard`:
    where its page was. `budget_spent`: what its budget says, if clips are left because of that.
    """

    left_out: int
    told: Mapping[str, object] | None = None
    dashboard: str | None = None
    budget_spent: str | None = None


def show_summary(
    bucket: Bucket,
    run: Run,
    progress: Progress,
    *,
    screen: Screen,
    submitted: Submitted | None = None,
    damages: Sequence[Damage] | None = None,
    submits: Sequence[StartedJobs] = (),
) -> Exit:
    """Shows how the run stands and returns the exit code that says it.

    `submitted`: of a submit that ends. `damages`: what a check found, None where none was made. `submits`: those
    of the run, the oldest first. Speedup, quality and alarms are read from the bucket, if no report was just made.
    """
    failures = failed_clips(bucket, progress)
    code = exit_code(run.num_clips, progress)
    document = summary_document(bucket, run, progress, failures)
    told = (submitted.told if submitted else None) or run_quality(bucket, progress)
    document |= {
        name: told[name] for name in ("speedup", "quality", "alarms", "guard", "clip_warnings", "c2pa", "bill")
    }
    if submitted is not None:
        left_out = submitted.left_out
        document |= {"rendered_now": len(progress.recorded) - left_out, "recorded_before": left_out}
        if submitted.budget_spent and document["remaining"]:
            document["budget_spent"], code = submitted.budget_spent, Exit.BUDGET_SPENT
        if submitted.dashboard is not None:
            document["dashboard"] = submitted.dashboard
    if damages is not None:
        document["damaged"] = [asdict(damage) for damage in damages]
        code = Exit.ERROR if damages else code
    if ids := next((each.slurm_ids for each in reversed(submits) if each.slurm_ids), None):
        document |= {"slurm_ids": ids, "dependency": f"afterany:{':'.join(ids)}"}
    waits = [each for each in submits if each.ended is None and each.waits_for]
    if waits and document["remaining"]:
        document["waits"] = [
            {"for": _short(str(each.waits_for)), "since": each.waits_since, "host": each.host, "submit": each.submit_id}
            for each in waits
        ]  # fmt: skip
    document["exit_code"] = int(code)
    screen.result(document, _text(bucket, document, failures))
    return code


def tell_damages(damages: Sequence[Damage], screen: Screen) -> None:
    """Says which objects of a run are damaged, the first of them."""
    for damage in damages[:SHOWN_FAILURES]:
        screen.note(f"  {_short(str(damage))}")
    if len(damages) > SHOWN_FAILURES:
        screen.note(f"  ... and {len(damages) - SHOWN_FAILURES:,} more")


def summary_document(bucket: Bucket, run: Run, progress: Progress, failures: list[FailedClip]) -> dict[str, object]:
    """Returns how the run stands as JSON values."""
    rendered = len(progress.recorded)
    return {
        "output": bucket.url,
        "run_id": run.run_id,
        "num_clips": run.num_clips,
        "rendered": rendered,
        "failed": len(progress.failed),
        "quarantined": len(progress.quarantined),
        "remaining": max(0, run.num_clips - rendered - len(progress.not_rendered)),
        "started": len(progress.started),
        "failures": [
            {
                "clip_id": clip.clip_id,
                "stage": clip.stage,
                "error": clip.error,
                "message": clip.message,
                "attempt": clip.attempt,
            }
            for clip in failures
        ],
        "videos": f"{bucket.url}/{_video_folder(bucket, progress)}",
        "report": f"{bucket.url}/{layout.RUN_PAGE}" if bucket.exists(layout.RUN_PAGE) else None,
    }


def _video_folder(bucket: Bucket, progress: Progress) -> str:
    # With --no-plain-videos there are only those that records name.
    one = min(progress.recorded, default=None)
    return "videos" if one is None or bucket.exists(layout.video(clip_id(one))) else "renders"


def _text(bucket: Bucket, document: dict[str, Any], failures: list[FailedClip]) -> str:
    lines = [f"{document['rendered']:,} of {counted(document['num_clips'], 'clip')} rendered"]
    if "rendered_now" in document:
        lines[0] += f" ({document['rendered_now']:,} now, {document['recorded_before']:,} recorded before)"
    not_rendered = int(str(document["failed"])) + int(str(document["quarantined"]))
    if document["remaining"]:
        lines.append(f"{document['remaining']:,} left to render; submit again to go on")
    if "budget_spent" in document:
        lines.append(f"{document['budget_spent']}; submit with a higher --budget to go on")
    if document["started"]:
        lines.append(f"{document['started']:,} of them started: they run, or their job was killed")
    lines += [
        f"{each['for']} (since {each['since']}, says the submit on {each['host']})"
        for each in document.get("waits", ())
    ]
    if "dependency" in document and document["remaining"]:
        ids = document["slurm_ids"]
        lines.append(f"SLURM jobs of the last submit: {', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''}")
    if not_rendered:
        lines.append(f"{counted(not_rendered, 'clip')} failed; to try again: {own_command('retry', bucket.url)}")
        lines += [f"  {_short(str(failure))}" for failure in failures]
        if not_rendered > SHOWN_FAILURES:
            lines.append(f"  ... and {not_rendered - SHOWN_FAILURES} more in {bucket.url}/failures")
    lines += [f"{name:<11}{text}" for name, text in told_lines(document)]
    lines += [
        f"warning    {counted(int(each['clips']), 'clip')}: {each['warning']}" for each in document["clip_warnings"]
    ]
    lines.append(f"videos     {document['videos']}")
    no_report = f"none yet; {own_command('report', bucket.url)}"
    lines.append(f"report     {document['report'] or no_report}")
    if "dashboard" in document:
        lines.append(f"dashboard  {document['dashboard']} (it lived as long as this submit)")
    return "\n".join(lines)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARS else line[: SHOWN_CHARS - 1] + "…"
