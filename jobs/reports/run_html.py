"""`reports/run.html`: the run on one page. What stands on it: `templates/run.html`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.reports.page import page

SHOWN_VIDEOS = 24


def run_page(document: Mapping[str, Any], videos: Sequence[str]) -> str:
    """Returns the page. `document`: what reports/run.json holds. `videos`: ids of the rendered clips, the first are shown."""
    return page("run.html", document=document, videos=videos, shown=videos[:SHOWN_VIDEOS])
