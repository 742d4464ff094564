"""What a job's clips took, by kind, in the form that planning reads again (`pipeline.planning.measured`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from jobs.reports.report_times import batch_size, settled_s
from pab.family import FLOAT8_PARTS

Json = dict[str, Any]
_SHAPE = ("num_frames", "height", "width", "num_steps", "broadcast")
_SAMPLING = ("sampling", "flow_shift")


def measured_times(records: Sequence[Json], starts: Sequence[Json]) -> list[Json]:
    """Returns an entry for each kind of clip, device, mesh and size of batch: seconds of denoising and decoding per clip.

    Steps count with the median of their pattern, so that a warm-up does not. The most memory that a rank held is told only
    where all clips were of one kind and alone: it is known of a whole start.
    """
    kinds: dict[str, list[Json]] = {}
    for record in records:
        plan = record.get("plan", {})
        if plan.get("out_of_memory") or plan.get("stepped_down"):
            continue  # it was rendered otherwise than its broadcast's name says
        kinds.setdefault(repr(_kind(record)), []).append(record)
    peak = max((start["peak_cuda_bytes"] for start in starts), default=0) or None
    one_kind = len(kinds) == 1 and all(batch_size(record) == 1 for record in records)
    return [_entry(alike, peak_bytes=peak if one_kind else None) for alike in kinds.values()]


def _entry(alike: Sequence[Json], *, peak_bytes: int | None) -> Json:
    steps_s = settled_s(alike[0], alike[1:])
    decode_s = median(record["seconds"].get("decode", 0.0) for record in alike)
    return {
        **_kind(alike[0]),
        "clips": len(alike),
        "seconds_per_clip": round(steps_s + decode_s, 6),
        "peak_bytes": peak_bytes,
    }


def _kind(record: Json) -> Json:
    clip: Mapping[str, Any] = record["clip"]
    guided, execution = clip["guidance_scale"] != 1.0, record.get("execution", {})
    eight = [part for part in FLOAT8_PARTS if execution.get(part) == "float8"]
    return {
        "family": clip["model"],
        "device": record["job"]["device"],
        "precision": record["job"]["precision"],
        **{name: clip[name] for name in _SHAPE},
        **{name: clip[name] for name in _SAMPLING if clip.get(name) is not None},
        "keep": execution.get("keep", "full"),
        **({"float8": eight} if eight else {}),
        "guided": guided,
        "mesh": _mesh(record["job"]["mesh"], guided=guided),
        "batch": batch_size(record),
    }


def _mesh(text: str, *, guided: bool) -> str:
    # Of dp nothing is left in one clip's seconds, and clips of one branch are rendered alike by both ranks of cfg.
    axes = dict(part.split("=") for part in text.split(","))
    return f"cfg={axes['cfg'] if guided else 1},sp={axes['sp']}"
