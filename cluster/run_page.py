"""The run's own page on the dashboard, `/run`: who drives the run leaves a document, the scheduler's web server shows it.

The scheduler knows tasks; how many clips are left, and when they will be done, only the driver knows. Dask imports this as
a module of routes (`distributed.scheduler.http.routes`), in the process of the scheduler only.
"""

from __future__ import annotations

from pathlib import Path

import dask
from distributed.http.utils import RequestHandler

from cluster.run_state import STATE_FILE

FOLDER = "pab.run-folder"
"""Key of Dask's configuration: the folder where the document lies."""
_PAGE = Path(__file__).with_suffix(".html")


class RunPage(RequestHandler):  # type: ignore[misc]
    """The page, which asks for the document again and again."""

    def get(self) -> None:
        """Answers with the page."""
        self.write(_PAGE.read_text(encoding="utf-8"))


class RunDocument(RequestHandler):  # type: ignore[misc]
    """What the driver said last; 404 before it has said anything."""

    def get(self) -> None:
        """Answers with the document."""
        try:
            document = (Path(dask.config.get(FOLDER)) / STATE_FILE).read_bytes()
        except FileNotFoundError:
            self.set_status(404)
            document = b"{}"
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        self.write(document)


routes: list[tuple[str, type[RequestHandler], dict[str, object]]] = [
    ("run", RunPage, {}),
    ("run.json", RunDocument, {}),
]
