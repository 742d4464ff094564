"""`reports/run.html`: the run on one page. What stands on it: `templates/run.html`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.quality.alarm_counts import ALARMS
from jobs.quality.guard import guard_text
from jobs.reports.page import page

SHOWN_VIDEOS = 24


def run_page(document: Mapping[str, Any], videos: Sequence[tuple[str, str]], *, num_rendered: int) -> str:
    """Returns the page. `document`: what reports/run.json holds.

    `videos`: clip id and the video's path below the run's folder, of the first rendered clips; `num_rendered`: of all.
    """
    guard = document.get("guard")
    return page(
        "run.html",
        document=document,
        videos=videos[:SHOWN_VIDEOS],
        num_rendered=num_rendered,
        alarm_words=ALARMS,
        guard_text=guard_text(guard) if guard else None,
    )
