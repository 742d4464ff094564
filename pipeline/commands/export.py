"""`export`: the rendered clips of a run as a data set of videos with captions, in one of three usual forms."""

from __future__ import annotations

import argparse
import io
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.store import layout
from jobs.store.bucket import Bucket
from pipeline.commands.export_forms import AT_ONCE, FORMS, Exported, Plan
from pipeline.commands.export_places import refuse_places_of_run
from pipeline.commands.export_target import Target, is_clip_id
from pipeline.commands.export_values import Row, column_names
from pipeline.exits import Exit, UsageError
from pipeline.run.run import load_run, open_bucket
from pipeline.screen import Screen, counted, own_command

_NS_PER_S = 1e9


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Carries out `export`."""
    bucket, folder = open_bucket(arguments.output), open_bucket(arguments.target)
    load_run(bucket)
    form = FORMS[arguments.format]
    refuse_places_of_run(bucket, folder, form.files.folder)
    index = Index(bucket, without_alarms=arguments.without_alarms)
    target = Target(folder, form.files)
    earlier, clip_ids = target.earlier(), index.clip_ids()
    strangers = target.check(earlier, clip_ids, overwrite=arguments.overwrite)
    names = column_names(index.columns, form.is_taken)
    renamed = {name: f"{name}_in_manifest" for name in index.nested_names() if form.is_taken_within(name)}
    renamed |= {name: free for name, free in names.items() if name != free}
    _tell(screen, folder.url, renamed, strangers)
    target.begin(earlier, clip_ids)
    done = Exported()
    plan = Plan(names=names, shard_bytes=round(arguments.shard_mb * 1e6))
    form.write(target, with_videos(bucket, index.rows(), done), done, plan)
    target.end(done.missing, clip_ids, done.files)
    document = {
        "output": bucket.url, "target": folder.url, "format": arguments.format, "clips": done.clips,
        "size_bytes": done.size_bytes, "files": done.files, "missing": done.missing, "renamed": renamed,
        "not_ours": strangers,
    }  # fmt: skip
    lines = [f"{counted(done.clips, 'clip')} ({done.size_bytes / 1e6:,.1f} MB) in {folder.url}"]
    if done.missing:
        lines.append(
            f"{counted(len(done.missing), 'video')} not there, such as that of {done.missing[0]}: status --check"
        )
    screen.result(document, "\n".join(lines))
    return Exit.ERROR if done.missing else Exit.OK


def _tell(screen: Screen, url: str, renamed: Mapping[str, str], strangers: list[str]) -> None:
    if renamed:
        pairs = ", ".join(f"{name} is {free}" for name, free in renamed.items())
        screen.note(f"columns of the manifest whose names this form uses itself: {pairs}")
    if strangers:
        screen.note(f"{counted(len(strangers), 'file')} of no export in {url}, such as {strangers[0]}: left as found")


class Index:
    """`reports/index.parquet` of a run. Raises UsageError if there is none."""

    def __init__(self, bucket: Bucket, *, without_alarms: bool) -> None:
        try:
            data = bucket.read(layout.INDEX)
        except FileNotFoundError as error:
            first = own_command("report", bucket.url)
            raise UsageError(f"{bucket.url} has no {layout.INDEX}; first: {first}") from error
        self._file = pq.ParquetFile(io.BytesIO(data))
        self._without_alarms = without_alarms
        self._url = bucket.url

    @property
    def columns(self) -> list[str]:
        """Their names."""
        return list(self._file.schema_arrow.names)

    def nested_names(self) -> set[str]:
        """Returns the names inside of nested columns."""
        return {name for field in self._file.schema_arrow for name in _names_within(field.type)}

    def rows(self, columns: list[str] | None = None) -> Iterator[Row]:
        """Yields the rows whose clips are rendered. `columns`: only these, the outcome and the alarms."""
        asked = None if columns is None else [*columns, "outcome", "alarms"]
        for batch in self._file.iter_batches(columns=asked):
            for row in _rows_of(batch):
                if row["outcome"] == "rendered" and not (self._without_alarms and row["alarms"]):
                    yield row

    def clip_ids(self) -> list[str]:
        """Returns the ids of the clips that `rows` yields. Raises UsageError if one cannot name a file."""
        found = [row["clip_id"] for row in self.rows(["clip_id"])]
        for clip_id in found:
            if not is_clip_id(clip_id):
                raise UsageError(
                    f"{self._url}/{layout.INDEX}: clip_id {clip_id!r} is no id; write it anew: "
                    f"{own_command('report', self._url)}"
                )
        return found


def with_videos(bucket: Bucket, rows: Iterator[Row], done: Exported) -> Iterator[tuple[Row, bytes]]:
    """Yields each row with the bytes of its video, in order; clips without one are counted as missing."""

    def read(path: str) -> bytes | None:
        try:
            return bucket.read(path)
        except FileNotFoundError:
            return None

    while part := list(itertools.islice(rows, AT_ONCE)):
        # The run may have been copied since: only the last two parts of a URL say where a video lies in it.
        paths = ["/".join(str(row["video_url"]).split("/")[-2:]) for row in part]
        videos = bucket.map_files(read, [path for path in paths if layout.is_video(path)])
        for row, path in zip(part, paths, strict=True):
            data = videos.get(path)
            if data is None:
                done.missing.append(row["clip_id"])
                continue
            done.clips += 1
            done.size_bytes += len(data)
            yield row, data


def _names_within(kind: pa.DataType) -> Iterator[str]:
    for number in range(kind.num_fields):
        yield kind.field(number).name
        yield from _names_within(kind.field(number).type)


def _rows_of(batch: pa.RecordBatch) -> list[Row]:
    columns = [_python_values(column) for column in batch.columns]
    return [dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]


def _python_values(column: pa.Array) -> list[Any]:
    kind = column.type
    # Python's own types end at a microsecond: without pandas, finer values of these would raise an error.
    if pa.types.is_duration(kind) and kind.unit == "ns":
        seconds: list[Any] = pc.divide(column.cast(pa.int64()).cast(pa.float64()), _NS_PER_S).to_pylist()
        return seconds
    if (pa.types.is_timestamp(kind) or pa.types.is_time64(kind)) and kind.unit == "ns":
        return [text and text.replace(" ", "T") for text in column.cast(pa.string()).to_pylist()]
    values: list[Any] = column.to_pylist()
    return values
