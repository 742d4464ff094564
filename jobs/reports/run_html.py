"""`reports/run.html`: the run on one page, with all its clips. What stands on it: `templates/run.html`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jobs.quality.alarm_counts import ALARMS
from jobs.quality.guard import guard_text
from jobs.reports.page import page
from jobs.reports.report_gallery import GalleryIndex


def run_page(
    document: Mapping[str, Any],
    gallery: GalleryIndex,
    *,
    script: str = "gallery/gallery.js",
    job_links: Mapping[str, str] | None = None,
    links_end: str | None = None,
) -> str:
    """Returns the page. `document`: what reports/run.json holds.

    `script`: link to the gallery's program. `job_links`: by job, where its page is, if not beside this one. `links_end`: when
    signed links end, of a page for others.
    """
    guard = document.get("guard")
    return page(
        "run.html",
        document=document,
        index=gallery.to_json(),
        choices=gallery.choices(),
        with_samples=gallery.with_samples,
        script=script,
        job_links=job_links,
        links_end=links_end,
        alarm_words=ALARMS,
        guard_text=guard_text(guard) if guard else None,
    )


def gallery_script() -> bytes:
    """Returns the program of the page's gallery, which lies beside the page."""
    return (files("jobs.reports") / "gallery.js").read_bytes()
