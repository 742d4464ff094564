"""Runs with videos and an index, as `export` finds them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("clip_id", "prompt", "outcome", "error", "video_url")),
        pa.field("alarms", pa.list_(pa.string())),
    ]
)
PROMPT = 'a "red" circle,\nround'


def write_run(output: Path, clip_ids: Sequence[str], extra: Mapping[str, pa.Array] | None = None) -> Path:
    """Writes a run of these rendered clips, each with a video of 600,000 bytes. `extra`: columns of its manifest."""
    (output / "renders").mkdir(parents=True)
    (output / "reports").mkdir()
    run = {"format": 1, "run_id": "0" * 12, "manifest_digest": "d", "num_clips": 1, "pixels": {}, "weights": {}}
    (output / "run.json").write_text(json.dumps(run))
    for name in clip_ids:
        video_file(output, name).write_bytes(video_of(name))
    write_index(output, clip_ids, extra)
    return output


def write_index(output: Path, clip_ids: Sequence[str], extra: Mapping[str, pa.Array] | None = None) -> None:
    """Writes the index anew, as if only these clips were rendered."""
    rows: list[dict[str, Any]] = [
        {
            "clip_id": name, "prompt": PROMPT, "outcome": "rendered", "error": None,
            "video_url": f"s3://elsewhere/run/renders/{name}.0a.12.mp4", "alarms": [],
        }
        for name in clip_ids
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    for name, column in (extra or {}).items():
        table = table.append_column(name, column)
    pq.write_table(table, output / "reports/index.parquet")


def video_file(output: Path, clip_id: str) -> Path:
    return output / f"renders/{clip_id}.0a.12.mp4"


def video_of(clip_id: str) -> bytes:
    return clip_id.encode().ljust(600_000, b".")


def files_in(folder: Path) -> dict[str, bytes]:
    """All files of a folder by their paths in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
