"""Writes the rows of the run page's gallery into the bucket, file by file, while the report is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from jobs.reports.report_gallery import CLIPS_PER_FILE, GalleryIndex, data_file
from jobs.store import layout
from jobs.store.bucket import Bucket
from pipeline.run.report_rows import ClipRow
from pipeline.run.state import FailedClip

Row = dict[str, Any]
_OF_MANIFEST = (
    "clip_id", "digest", "prompt", "negative_prompt", "seed", "model", "num_frames", "height", "width", "fps", "num_steps",
    "guidance_scale", "broadcast",
)  # fmt: skip
_OF_ROW = ("outcome", "rendered", "elapsed_s", "video", "poster", "without_reuse", "log")
_SHARED = ("video", "poster", "without_reuse")
_OURS = ("record", "log", "job", "failure")
"""What others are not shown: it names machines and folders."""


@dataclass(slots=True, kw_only=True)
class GalleryWriter:
    """Takes the clips of a run in their order. `close` returns what the page needs to know.

    `failures`: by clip id, why clips have no video. `folder`: layout.GALLERY, or layout.SHARED_GALLERY with `sign`, which
    makes a link of a path that others may follow; without it rows have paths.
    """

    bucket: Bucket
    failures: Mapping[str, FailedClip]
    folder: str = layout.GALLERY
    sign: Callable[[str], str] | None = None
    index: GalleryIndex = field(default_factory=GalleryIndex)
    _rows: list[Row] = field(default_factory=list)
    _written: int = 0

    def add(self, batch: pa.RecordBatch, rows: Sequence[ClipRow]) -> None:
        """Takes in a part of the manifest with its clips' rows, and writes the files that are full. Raises BucketError."""
        names = [name for name in _OF_MANIFEST if name in batch.schema.names]
        columns = [batch.column(name).to_pylist() for name in names]
        for values, row in zip(zip(*columns, strict=True), rows, strict=True):
            told = self._row(dict(zip(names, values, strict=True)), row)
            self.index.add(told)
            if self.sign is not None:
                told |= {name: self.sign(told[name]) for name in _SHARED if told[name] is not None}
                told |= dict.fromkeys(_OURS)
            self._rows.append(told)
        self._write(whole=False)

    def close(self) -> GalleryIndex:
        """Writes the last file. Raises BucketError."""
        self._write(whole=True)
        return self.index

    def _write(self, *, whole: bool) -> None:
        count = math.ceil(len(self._rows) / CLIPS_PER_FILE) if whole else len(self._rows) // CLIPS_PER_FILE
        parts = {
            layout.gallery_file(self.folder, self._written + each): (
                self._written + each,
                self._rows[each * CLIPS_PER_FILE : (each + 1) * CLIPS_PER_FILE],
            )
            for each in range(count)
        }
        self.bucket.map_files(lambda path: self.bucket.write(path, data_file(*parts[path])), parts)
        self.index.files += [self._link(path) for path in parts]
        self._written += count
        del self._rows[: count * CLIPS_PER_FILE]

    def _link(self, path: str) -> str:
        return path.removeprefix("reports/") if self.sign is None else self.sign(path)

    def _row(self, of_manifest: Row, row: ClipRow) -> Row:
        told = dict.fromkeys(_OF_MANIFEST) | of_manifest | {name: getattr(row, name) for name in _OF_ROW}
        told |= {name: _finite(row.alike(name)) for name in ("psnr_db", "ssim", "vmaf")}
        told["identical"] = bool(row.quality and row.quality["identical"])
        told["alarms"] = None if row.alarms is None else list(row.alarms)
        rendered = row.outcome == "rendered"
        key = f"{told['clip_id']}.{told['digest']}"
        failed = None if rendered else self.failures.get(str(told["clip_id"]))
        told["record"] = layout.record(key) if rendered else None
        told["job"] = None if row.job is None else layout.job_report(layout.shard_of(row.job), "html")
        told["error"] = None if failed is None else f"{failed.error} in {failed.stage}: {failed.message}"
        told["failure"] = None if failed is None else failed.path
        if failed is not None:
            told["log"] = failed.log
        # A browser's numbers have 53 bits, seeds have 64.
        told["seed"] = None if told["seed"] is None else str(told["seed"])
        told["guidance_scale"] = _finite(told["guidance_scale"])
        return told


def _finite(value: float | None) -> float | None:
    # JSON has no infinity; clips whose frames are the same say so in another column.
    return value if value is not None and math.isfinite(value) else None
