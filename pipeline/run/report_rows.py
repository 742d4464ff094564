"""What became of every clip of a run: read from the jobs' few reports, and from single records for clips in no report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.reports.report_energy import joules_of
from jobs.reports.report_speedup import clip_factors, reuses
from jobs.store import layout
from jobs.store.bucket import Bucket
from pipeline.run.state import FailedClip, Progress

Json = dict[str, Any]
SIGNED, FOR_TRIES, UNSIGNED = "certificate", "tries", "none"
"""What `ClipRow.c2pa` can be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRow:
    """How one clip ended. `outcome`: "rendered", "failed", "quarantined", "damaged" (its record) or "left".

    The rest is of rendered ones. `denoise_s`: its denoising loop; `settled_s`: the same with each step at the median of its
    pattern; `baseline_s`: what the loop would take if every step took as long as the clip's own full ones, None for a clip
    that reuses nothing, has no full step, or whose steps were timed only while something was compiled. `rendered`: the
    broadcast that it was rendered with. `alarms`: None where an earlier version has not looked. `quality`: against the
    clip without reuse, of clips that were rendered twice. `warnings`: what its record says, such as a prompt that was cut.
    `c2pa`: "certificate" of a video that carries a manifest, "tries" if that was signed for tries, else "none". `poster`,
    `without_reuse`, `log`: paths of its picture, of its video without reuse and of the log that tells of it. `job`: the name
    of the job that rendered it. `joules`: what its GPUs used for it, None where they do not count it.
    """

    outcome: str
    elapsed_s: float | None = None
    denoise_s: float | None = None
    settled_s: float | None = None
    baseline_s: float | None = None
    plan: str | None = None
    video: str | None = None
    rendered: str | None = None
    alarms: tuple[str, ...] | None = None
    quality: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    poster: str | None = None
    without_reuse: str | None = None
    log: str | None = None
    job: str | None = None
    c2pa: str = UNSIGNED
    joules: float | None = None

    def alike(self, name: str) -> float | None:
        """Returns `psnr_db`, `ssim` or `vmaf` of a clip that was rendered twice; PSNR of the same frames is infinite."""
        if self.quality is None:
            return None
        return math.inf if name == "psnr_db" and self.quality["identical"] else self.quality[name]


def told_rows(reports: Iterable[Json]) -> dict[str, ClipRow]:
    """Returns, by clip key, the rendered clips that are in the jobs' reports; a clip may stand in several."""
    rows: dict[str, ClipRow] = {}
    for report in reports:
        for row in report["clips"]:
            if row["outcome"] == "rendered":
                rows[f"{row['clip_id']}.{row['digest']}"] = ClipRow(
                    outcome="rendered",
                    elapsed_s=row["elapsed_s"],
                    denoise_s=row["denoise_s"],
                    settled_s=row.get("settled_s", row["denoise_s"]),
                    baseline_s=row["derived_baseline_s"] if row["pab_factor_derived"] is not None else None,
                    plan=row["plan"],
                    video=row["video"] if layout.is_video(str(row["video"])) else None,
                    rendered=row.get("rendered", row["broadcast"]),
                    alarms=_alarms(row),
                    quality=row.get("quality"),
                    warnings=tuple(row.get("warnings", ())),
                    poster=_path(row, "poster", layout.is_poster),
                    without_reuse=_path(row, "without_reuse", layout.is_sample),
                    log=_path(row, "log", layout.is_log),
                    job=str(report["job"]) if layout.is_job_name(str(report["job"])) else None,
                    c2pa=_signed(row),
                    joules=joules_of({"joules": row.get("joules")}),
                )
    return rows


class RunRows:
    """Every clip's row, asked for by key in batches."""

    def __init__(self, bucket: Bucket, progress: Progress, told: Mapping[str, ClipRow]) -> None:
        self._bucket = bucket
        self._progress = progress
        self._told = told

    def rows(self, keys: Sequence[str]) -> list[ClipRow]:
        """Returns the rows of these clips, in their order. Raises BucketError."""
        progress = self._progress
        untold = [key for key in keys if key in progress.recorded and key not in self._told]
        read = {key: record_row(record) for key, record in self._bucket.records(untold).items()}
        return [self._row(key, read) for key in keys]

    def _row(self, key: str, read: Mapping[str, ClipRow]) -> ClipRow:
        if key in self._progress.recorded:
            # A record that is damaged says nothing more than that its clip was rendered once.
            return self._told.get(key) or read.get(key) or ClipRow(outcome="damaged")
        if key in self._progress.failed:
            return ClipRow(outcome="failed")
        return ClipRow(outcome="quarantined" if key in self._progress.quarantined else "left")


def record_row(record: Json) -> ClipRow:
    """Returns the row of a clip from its record."""
    (factor,) = clip_factors([record])
    known = factor.factor is not None and reuses(record)
    return ClipRow(
        outcome="rendered",
        elapsed_s=record["elapsed_s"],
        denoise_s=sum(record["steps"]["seconds"]),
        settled_s=factor.settled.seconds,
        baseline_s=factor.baseline_s if known else None,
        plan=record["plan"]["digest"],
        video=record["video"]["path"],
        rendered=record["plan"].get("rendered", record["plan"]["broadcast"]),
        alarms=_alarms(record),
        warnings=tuple(record.get("warnings", ())),
        poster=_path(record["video"], "poster", layout.is_poster),
        without_reuse=_path(record["video"], "without_reuse", layout.is_sample),
        log=layout.log_of(record["job"]),
        job=layout.job_of(record["job"]),
        c2pa=_signed(record["video"]),
        joules=joules_of(record.get("energy")),
    )


def _path(told: Json, name: str, is_ours: Callable[[str], bool]) -> str | None:
    """Returns a path of what lies beside a video. Whoever writes to a bucket must not choose what a page links to."""
    path = told.get(name)
    return path if isinstance(path, str) and is_ours(path) else None


def _signed(told: Json) -> str:
    # Runs of before have signed nothing.
    match told.get("c2pa"):
        case {"certificate": {"made_for_tries": True}}:
            return FOR_TRIES
        case {"certificate": _}:
            return SIGNED
    return UNSIGNED


def _alarms(told: Json) -> tuple[str, ...] | None:
    alarms = told.get("alarms")
    return None if alarms is None else tuple(alarms)


def errors_by_id(failures: Iterable[FailedClip]) -> dict[str, str]:
    """Returns the reasons of failed clips by clip id."""
    return {failure.clip_id: f"{failure.error} in {failure.stage}: {failure.message}" for failure in failures}
