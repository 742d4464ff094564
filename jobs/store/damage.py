"""Whether a record or a job's report holds what its readers need, and whether a record's video is the one that it names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from jobs.store import layout

_RECORD_PARTS: Mapping[str, type | tuple[type, ...]] = {
    "clip_id": str, "digest": str, "video": dict, "plan": dict, "steps": dict, "seconds": dict, "elapsed_s": (int, float),
    "job": dict,
}  # fmt: skip
_VIDEO_PARTS: Mapping[str, type] = {"path": str, "sha256": str, "size_bytes": int}
_REPORT_PARTS: Mapping[str, type | tuple[type, ...]] = {
    "job": str, "mesh": str, "counts": dict, "speedup": dict, "throughput": dict, "all_to_alls": dict, "calls": dict,
    "starts": list, "clips": list,
}  # fmt: skip


def record_fault(record: Mapping[str, Any], key: str) -> str | None:
    """Returns what is wrong with the record of a clip, whose key is `<clip_id>.<digest>`; None for a good one."""
    fault = _missing(record, _RECORD_PARTS) or _missing(record["video"], _VIDEO_PARTS, "video.")
    if fault is not None:
        return fault
    found = f"{record['clip_id']}.{record['digest']}"
    if found != key:
        return f"it is of clip {found}"
    if not layout.is_video(record["video"]["path"]):
        return f"its video.path is {record['video']['path']!r}, needs renders/NAME.mp4 or videos/NAME.mp4"
    return None


def report_fault(report: Mapping[str, Any]) -> str | None:
    """Returns what is wrong with a job's report; None for a good one."""
    return _missing(report, _REPORT_PARTS)


def size_fault(record: Mapping[str, Any], size_bytes: int | None) -> str | None:
    """Returns what is wrong with the video of a good record, by its size alone (None: it is not there)."""
    video = record["video"]
    if size_bytes is None:
        return f"its video {video['path']} is not there"
    if size_bytes != video["size_bytes"]:
        return f"its video {video['path']} has {size_bytes:,} bytes, the record says {video['size_bytes']:,}"
    return None


def content_fault(record: Mapping[str, Any], data: bytes) -> str | None:
    """Returns what is wrong with the video of a good record, by its bytes."""
    if hashlib.sha256(data).hexdigest() != record["video"]["sha256"]:
        return f"its video {record['video']['path']} has other bytes than the record says"
    return None


def _missing(document: Mapping[str, Any], parts: Mapping[str, type | tuple[type, ...]], prefix: str = "") -> str | None:
    for name, kind in parts.items():
        if not isinstance(document.get(name), kind):
            return f"it has no {prefix}{name}" if name not in document else f"its {prefix}{name} is not as it must be"
    return None
