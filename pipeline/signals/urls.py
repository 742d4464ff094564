"""URLs that may be secrets: how they are read, and what of them may be shown."""

from __future__ import annotations

from urllib.parse import urlsplit

from manifests.printable import one_line


def read_url(text: str, example: str) -> str:
    """Reads an http or https URL. Raises ValueError, which says what is needed and does not quote the text."""
    needed = f"needs a URL such as {example}"
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018  (raises for a port that is no number)
    except ValueError as error:
        raise ValueError(needed) from error
    if parts.scheme not in ("http", "https") or not parts.hostname or not text.isprintable() or " " in text:
        raise ValueError(needed)
    if "@" in parts.netloc:
        raise ValueError(f"{needed}, without a user's name or password in it")
    return text


def host_of(url: str) -> str:
    """Returns the part of a URL that is no secret."""
    return one_line(urlsplit(url).hostname or "?")
