"""The content type of a file, as the library of each store takes it: without one, browsers save a file and do not show it."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

AZURE = frozenset({"abfs", "abfss", "az", "wasb", "wasbs"})
"""The protocols of Azure's URLs."""
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".jpg": "image/jpeg",
    ".log": "text/plain; charset=utf-8",
    ".mp4": "video/mp4",
    ".png": "image/png",
}
"""By the ends of their names."""


def protocols_of(fs: Any) -> frozenset[str]:
    """Returns the protocols of one of fsspec's filesystems, some of which name one and some several."""
    return frozenset([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def kind_of(fs: Any, path: str) -> dict[str, Any]:
    """Returns the arguments for writing a file that say of what kind it is; none for other files and stores."""
    kind, protocols = _KINDS.get(PurePosixPath(path).suffix), protocols_of(fs)
    if kind is None:
        return {}
    if "s3" in protocols:
        return {"ContentType": kind}
    if "gs" in protocols:
        return {"content_type": kind}
    if protocols & AZURE:
        from azure.storage.blob import ContentSettings

        return {"content_settings": ContentSettings(content_type=kind)}
    return {}
