"""A webhook to which JSON is posted. Its URL is a secret for many services: no message has more of it than its host."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, NoReturn

from manifests.printable import one_line
from pipeline.signals.urls import host_of

TIMEOUT_S = 10.0
_SHOWN_CHARS = 200


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """What a run says goes to the address that the user named, and to no other."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> NoReturn:
        raise urllib.error.HTTPError(
            req.full_url, code, "it leads to another address, which is not followed", headers, fp
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Posts JSON documents to `url`."""

    url: str

    @property
    def place(self) -> str:
        """The part of the URL that is no secret."""
        return host_of(self.url)

    def send(self, body: bytes) -> str | None:
        """Posts a document; returns what went wrong, or None."""
        try:
            request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
            with urllib.request.build_opener(_NoRedirects).open(request, timeout=TIMEOUT_S):
                return None
        except urllib.error.HTTPError as error:
            return one_line(f"it answers {error.code} {error.reason}")[:_SHOWN_CHARS]
        except urllib.error.URLError as error:
            return one_line(str(error.reason))[:_SHOWN_CHARS]
        except (OSError, http.client.HTTPException, ValueError) as error:
            return type(error).__name__  # its text may quote the URL
