"""Telling a webhook how a run stands: at its end, when many clips fail, and when its budget is nearly or wholly spent.

The URL is a secret for many services: no message, log or file of a run has more of it than its host.
"""

from __future__ import annotations

import http.client
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

from manifests.printable import one_line
from pipeline.screen import Screen

TIMEOUT_S = 10.0
FAILED_SHARE, MIN_ENDED = 0.2, 10
"""Many clips fail: this share of those that ended in a submit, of at least so many."""
_SHOWN_CHARS = 200


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """What a run says goes to the address that the user named, and to no other."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> NoReturn:
        raise urllib.error.HTTPError(
            req.full_url, code, "it leads to another address, which is not followed", headers, fp
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Notifier:
    """Tells a webhook, or nobody if `url` is None. What does not arrive is noted, and changes nothing."""

    url: str | None
    output: str
    run_id: str
    screen: Screen

    def tell(self, event: str, text: str, facts: Mapping[str, object] | None = None) -> None:
        """Posts `{"event": ..., "text": ..., "output": ..., "run_id": ...}` and the facts as JSON; waits some seconds."""
        if self.url is None:
            return
        body = {"event": event, "text": text, "output": self.output, "run_id": self.run_id, **(facts or {})}
        said: list[str] = []
        thread = threading.Thread(target=self._post, args=(json.dumps(body, default=str).encode(), said), daemon=True)
        thread.start()
        thread.join(2 * TIMEOUT_S)
        problem = said[0] if said else "it takes too long" if thread.is_alive() else None
        if problem:
            self.screen.note(f"the notification ({event}) did not reach {host_of(self.url)}: {problem}")

    def _post(self, body: bytes, said: list[str]) -> None:
        try:
            request = urllib.request.Request(self.url or "", body, {"Content-Type": "application/json"})
            with urllib.request.build_opener(_NoRedirects).open(request, timeout=TIMEOUT_S):
                return
        except urllib.error.HTTPError as error:
            said.append(one_line(f"it answers {error.code} {error.reason}")[:_SHOWN_CHARS])
        except urllib.error.URLError as error:
            said.append(one_line(str(error.reason))[:_SHOWN_CHARS])
        except (OSError, http.client.HTTPException, ValueError) as error:
            said.append(type(error).__name__)  # its text may quote the URL


def webhook(text: str) -> str:
    """Reads the URL of a webhook. Raises ValueError, which says what is needed."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or not text.isprintable() or " " in text:
        raise ValueError("needs a URL such as https://hooks.example.org/run")
    return text


def host_of(url: str) -> str:
    """Returns the part of a webhook's URL that is no secret."""
    return one_line(urlsplit(url).hostname or "?")


def many_failed(*, rendered: int, failed: int) -> bool:
    """Whether so many of the clips that ended failed that somebody should look."""
    return rendered + failed >= MIN_ENDED and failed >= FAILED_SHARE * (rendered + failed)
