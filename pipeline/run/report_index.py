"""`reports/index.parquet`: the accepted rows with their extra columns, and what became of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.quality.alarm_counts import AlarmCounts
from manifests.read import open_manifest
from pipeline.run.clip_warnings import WarningCounts
from pipeline.run.report_rows import ClipRow, RunRows

BATCH_ROWS = 8192
_ADDED = pa.schema(
    [
        ("outcome", pa.string()),
        ("error", pa.string()),
        ("video_url", pa.string()),
        ("plan", pa.string()),
        ("rendered_with", pa.string()),
        ("elapsed_s", pa.float64()),
        ("denoise_s", pa.float64()),
        ("alarms", pa.list_(pa.string())),
        ("psnr_db", pa.float64()),
        ("ssim", pa.float64()),
        ("vmaf", pa.float64()),
        ("warnings", pa.list_(pa.string())),
        ("c2pa", pa.string()),
        ("joules", pa.float64()),
    ]
)


@dataclass(slots=True)
class IndexTotals:
    """Sums over rows, gathered while the index is written. Baselines are of clips whose own full steps tell one."""

    outcomes: dict[str, int] = field(default_factory=dict)
    elapsed_s: float = 0.0
    denoise_s: float = 0.0
    compared_clips: int = 0
    compared_s: float = 0.0
    baseline_s: float = 0.0
    alarms: AlarmCounts = field(default_factory=AlarmCounts)
    warnings: WarningCounts = field(default_factory=WarningCounts)
    c2pa: dict[str, int] = field(default_factory=dict)
    """Rendered clips by what their `ClipRow.c2pa` says."""

    def add(self, clip_id: str, row: ClipRow) -> None:
        """Takes in one clip."""
        self.outcomes[row.outcome] = self.outcomes.get(row.outcome, 0) + 1
        self.elapsed_s += row.elapsed_s or 0.0
        self.denoise_s += row.denoise_s or 0.0
        if row.baseline_s is not None and row.settled_s is not None:
            self.compared_clips += 1
            self.compared_s += row.settled_s
            self.baseline_s += row.baseline_s
        self.alarms.add(clip_id, row.alarms, row.video)
        self.warnings.add(row.warnings)
        if row.outcome == "rendered":
            self.c2pa[row.c2pa] = self.c2pa.get(row.c2pa, 0) + 1


def write_index(
    manifest_file: Path,
    rows: RunRows,
    errors: Mapping[str, str],
    *,
    url: str,
    path: Path,
    shown: Callable[[pa.RecordBatch, Sequence[ClipRow]], None],
) -> IndexTotals:
    """Writes the index of a run to a local file.

    `manifest_file`: the run's manifest, on this machine. `url`: the run's, which videos are named under. `shown`: is given
    every part of the manifest with its clips' rows.

    A column of the manifest that is named like one of ours keeps its values as `<name>_in_manifest`, or with that twice if
    the manifest has such a column too.
    """
    totals = IndexTotals()
    with open_manifest(str(manifest_file)) as manifest:
        kept = [pa.field(_kept_name(column.name, manifest.schema.names), column.type) for column in manifest.schema]
        schema = pa.schema([*kept, *_ADDED])
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for batch in manifest.iter_batches(batch_rows=BATCH_ROWS):
                ids = batch.column("clip_id").to_pylist()
                keys = [
                    f"{name}.{digest}" for name, digest in zip(ids, batch.column("digest").to_pylist(), strict=True)
                ]
                found = rows.rows(keys)
                for name, row in zip(ids, found, strict=True):
                    totals.add(name, row)
                shown(batch, found)
                added = [
                    [row.outcome for row in found],
                    [
                        errors.get(name) if row.outcome != "rendered" else None
                        for name, row in zip(ids, found, strict=True)
                    ],
                    [f"{url}/{row.video}" if row.video else None for row in found],
                    [row.plan for row in found],
                    [row.rendered for row in found],
                    [row.elapsed_s for row in found],
                    [row.denoise_s for row in found],
                    [row.alarms for row in found],
                    *([row.alike(name) for row in found] for name in ("psnr_db", "ssim", "vmaf")),
                    [row.warnings if row.outcome == "rendered" else None for row in found],
                    [row.c2pa if row.outcome == "rendered" else None for row in found],
                    [row.joules for row in found],
                ]
                arrays = [pa.array(values, kind.type) for values, kind in zip(added, _ADDED, strict=True)]
                writer.write_batch(pa.RecordBatch.from_arrays([*batch.columns, *arrays], schema=schema))
    return totals


def _kept_name(name: str, names: Sequence[str]) -> str:
    free = name
    while free in _ADDED.names or (free != name and free in names):
        free += "_in_manifest"
    return free
