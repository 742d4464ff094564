"""Measured seconds of clips by family, size, device and mesh: read from reports of earlier jobs, or from a file.

Entries with 8-bit floats name what was of them: `"float8": ["linears", "attention"]`.
The JSON form, which a run's `reports/run.json` and a job's report hold too (docs/jobs.md):
`{"measured": [{"family": "open_sora", "device": "NVIDIA H200", "precision": "bfloat16", "num_frames": 51, "height": 480,
"width": 848, "num_steps": 30, "guided": true, "broadcast": "pab246", "mesh": "cfg=2,sp=1", "batch": 1,
"seconds_per_clip": 2.7, "peak_bytes": 13000000000}]}`
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.store.bucket import Bucket
from manifests.shards import ClipGroup
from pab.families import FAMILIES
from pipeline.exits import UsageError
from pipeline.run.settings import parse_mesh

Json = dict[str, Any]
MOST_REPORTS = 32
"""Of jobs of an earlier submit, read to learn times."""
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "family": str, "device": str, "precision": str, "num_frames": int, "height": int, "width": int, "num_steps": int,
    "guided": bool, "broadcast": str, "mesh": str, "seconds_per_clip": (int, float),
}  # fmt: skip
_KIND = (*(key for key in _TYPES if key != "seconds_per_clip"), "batch", "sampling", "flow_shift", "float8")
"""What entries of one kind have in common; the last three are there only where clips are not rendered as published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredClip:
    """What a clip of a group took on the `cfg` x `sp` ranks that render one together.

    `seconds`: of denoising and decoding; of a clip in a batch its share. `peak_bytes`: of the rank that held most. `keep`:
    how its kept outputs were stored. `float8`: which of `pab.family.FLOAT8_PARTS` were of 8-bit floats.
    """

    group: ClipGroup
    device: str
    precision: str
    cfg: int
    sp: int
    seconds: float
    batch: int = 1
    peak_bytes: float | None = None
    keep: str = "full"
    float8: tuple[str, ...] = ()

    def is_of(self, precision: str) -> bool:
        """Returns whether a run of this precision, or of each family's own ("auto"), renders such clips in the same one."""
        family = FAMILIES.get(self.group.model)
        return self.precision == (precision if family is None else family.precision_for(precision))


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredTimes:
    """All that was measured on one device. `source` says where it was read, None where there is nothing."""

    clips: tuple[MeasuredClip, ...] = ()
    source: str | None = None
    device_bytes: float | None = None
    """Memory of the devices that earlier jobs had."""
    device: str | None = None
    """Their name, of several one."""

    def seconds(self, group: ClipGroup, cfg: int, sp: int, keep: str = "full") -> float | None:
        """Returns the least seconds per clip, over sizes of batches; None where this was not measured."""
        return min((clip.seconds for clip in self._of(group, cfg, sp, keep)), default=None)

    def latency(self, group: ClipGroup, cfg: int, sp: int, keep: str = "full") -> float | None:
        """Returns the seconds of a clip that is rendered alone; of one in a batch, all of the batch's."""
        return min((clip.seconds * clip.batch for clip in self._of(group, cfg, sp, keep)), default=None)

    def peak_bytes(self, group: ClipGroup, cfg: int, sp: int, keep: str = "full") -> float | None:
        """Returns the most memory that a rank held; None where it was not measured."""
        return max((clip.peak_bytes for clip in self._of(group, cfg, sp, keep) if clip.peak_bytes), default=None)

    def meshes(self, group: ClipGroup, keep: str = "full") -> list[tuple[int, int]]:
        """Returns on which cfg and sp clips of a group were measured, fewest ranks first."""
        group = replace(group, lora="")
        found = {(clip.cfg, clip.sp) for clip in self.clips if clip.group == group and clip.keep == keep}
        return sorted(found, key=lambda mesh: (mesh[0] * mesh[1], mesh))

    def _of(self, group: ClipGroup, cfg: int, sp: int, keep: str) -> list[MeasuredClip]:
        group, wanted = replace(group, lora=""), (cfg, sp, keep)  # LoRAs are in the weights: they cost no time
        return [clip for clip in self.clips if clip.group == group and (clip.cfg, clip.sp, clip.keep) == wanted]


NOTHING_MEASURED = MeasuredTimes()


def of_one_device(
    clips: Sequence[MeasuredClip], *, precision: str, source: str, float8: tuple[str, ...] = ()
) -> MeasuredTimes:
    """Returns what was measured in these numbers, on the device with the most entries: times of two are not compared."""
    clips = [clip for clip in clips if clip.is_of(precision) and clip.float8 == float8]
    if not clips:
        return NOTHING_MEASURED
    device = Counter(clip.device for clip in clips).most_common(1)[0][0]
    mine = tuple(clip for clip in clips if clip.device == device)
    return MeasuredTimes(clips=mine, source=f"{source}, {device}")


def read_measured_file(path: str, *, precision: str, float8: tuple[str, ...] = ()) -> MeasuredTimes:
    """Reads a file of measured times. Raises UsageError naming the entry and what it needs."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"--measured {path}: {error}; give a run's reports/run.json or a bench's JSON") from error
    entries = document.get("measured") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise UsageError(f"--measured {path}: has no list `measured`; give a run's reports/run.json or a bench's JSON")
    clips = [_entry(entry, f"--measured {path}: entry {i}") for i, entry in enumerate(entries)]
    times = of_one_device(clips, precision=precision, source=path, float8=float8)
    if not times.clips:
        eight = f" with 8-bit {' and '.join(float8)}" if float8 else ""
        raise UsageError(
            f"--measured {path}: has no entry of precision {precision}{eight}, the run's; measure with it, or leave it out"
        )
    return times


def read_measured_jobs(bucket: Bucket, *, precision: str, float8: tuple[str, ...] = ()) -> MeasuredTimes:
    """Reads what earlier jobs of a run measured. Raises BucketError."""
    reports, _ = bucket.job_reports(newest=MOST_REPORTS)
    clips = [
        _entry(entry, f"{bucket.url}/reports: {report['job']}")
        for report in reports
        for entry in report.get("measured", ())
    ]
    found = of_one_device(clips, precision=precision, source="earlier jobs of this run", float8=float8)
    known = [start.get("device_bytes") for report in reports for start in report["starts"]]
    smallest = min((float(size) for size in known if size), default=None)
    device = next(
        (str(start["device"]) for report in reports for start in report["starts"] if start.get("device")), None
    )
    return MeasuredTimes(clips=found.clips, source=found.source, device_bytes=smallest, device=device)


def _entry(entry: object, place: str) -> MeasuredClip:
    values = entry if isinstance(entry, dict) else {}
    for key, kind in _TYPES.items():
        if not isinstance(values.get(key), kind):
            names = kind.__name__ if isinstance(kind, type) else "number"
            raise UsageError(f"{place}: {key}={values.get(key)!r}, needs a {names}")
    seconds, batch = float(values["seconds_per_clip"]), values.get("batch", 1)
    if seconds <= 0 or not isinstance(batch, int) or batch < 1:
        raise UsageError(f"{place}: seconds_per_clip={seconds}, batch={batch!r}, need to be above 0")
    mesh = parse_mesh(values["mesh"], place)
    peak = values.get("peak_bytes")
    return MeasuredClip(
        group=ClipGroup(
            model=values["family"],
            height=values["height"],
            width=values["width"],
            num_frames=values["num_frames"],
            num_steps=values["num_steps"],
            broadcast=values["broadcast"],
            guided=values["guided"],
            sampling=values.get("sampling") or "",
            flow_shift=float(values.get("flow_shift") or 0.0),
        ),
        device=values["device"],
        precision=values["precision"],
        cfg=mesh.cfg,
        sp=mesh.sp,
        seconds=seconds,
        batch=batch,
        peak_bytes=float(peak) if isinstance(peak, int | float) and peak > 0 else None,
        keep=str(values.get("keep", "full")),
        float8=tuple(values.get("float8") or ()),
    )


def joined_measured(reports: Iterable[Json]) -> list[Json]:
    """Returns what a run's jobs measured, the fastest entry of each kind and how many clips it is over in all."""
    best: dict[str, Json] = {}
    for report in reports:
        for entry in report.get("measured", ()):
            kind = json.dumps({key: entry.get(key) for key in _KIND} | {"keep": entry.get("keep", "full")})
            known = best.get(kind)
            if known is None or entry["seconds_per_clip"] < known["seconds_per_clip"]:
                best[kind] = entry
    return list(best.values())
