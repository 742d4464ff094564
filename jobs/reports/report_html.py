"""A job's report as one page. What stands on it: `templates/job.html`."""

from __future__ import annotations

import base64
from typing import Any

from jobs.quality.alarm_counts import ALARMS
from jobs.quality.headline import quality_summary
from jobs.reports.page import page
from jobs.reports.report_speedup import baselines_of
from jobs.reports.report_svg import bar_chart, block_picture, plan_picture
from jobs.reports.step_patterns import LEGEND, looks_of

Json = dict[str, Any]
_MAX_ROWS = 500


def report_page(report: Json, strip_png: bytes | None) -> str:
    """Returns the page of a report as `build_report` gives it. `strip_png`: frames without broadcast over those with."""
    # Reports of earlier versions tell nothing of batches.
    batches = report.get("batches", [])
    return page(
        "job.html",
        report=report,
        quality=quality_summary(baselines_of(report)),
        alarms=report.get("alarms"),
        alarm_words=ALARMS,
        looks=looks_of((plan["kinds"], plan["patterns"]) for plan in report["plans"]),
        legend=LEGEND,
        plans=[_plan(plan) for plan in report["plans"]],
        batches=batches if any(batch["size"] > 1 for batch in batches) else [],
        clips=report["clips"][:_MAX_ROWS],
        strip_base64=None if strip_png is None else base64.b64encode(strip_png).decode(),
    )


def _plan(plan: Json) -> Json:
    adaptive = "blocks" in plan
    picture = block_picture(plan["blocks"]) if adaptive else plan_picture(plan["kinds"], plan["patterns"])
    bars = bar_chart(plan["patterns"], plan["step_median_s"], plan["kinds"])
    return {**plan, "decided_while_rendering": adaptive, "picture": picture, "bars": bars}
