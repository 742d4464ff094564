"""`export`: the rendered clips of a run as a data set of videos with captions, in one of three usual forms."""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from jobs.store import layout
from jobs.store.bucket import Bucket
from pipeline.exits import Exit, UsageError
from pipeline.run.run import load_run, open_bucket
from pipeline.screen import Screen, counted, own_command

AT_ONCE = 16
"""Videos that are in memory at the same time."""
_INNER = ("video_url", "outcome", "error")
Row = Mapping[str, Any]


@dataclass(slots=True)
class Exported:
    """What was written. `missing`: clips whose video is not there."""

    clips: int = 0
    size_bytes: int = 0
    files: int = 0
    missing: list[str] = field(default_factory=list)


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Carries out `export`."""
    bucket, target = open_bucket(arguments.output), open_bucket(arguments.target)
    load_run(bucket)
    if f"{target.url}/".startswith(f"{bucket.url}/"):
        raise UsageError(
            f"{target.url} is in the run's own output, whose videos would be written over; name another folder"
        )
    write, first = FORMATS[arguments.format]
    if target.exists(first) and not arguments.overwrite:
        raise UsageError(f"{target.url}/{first} exists; name another folder, or add --overwrite")
    rows = rendered_rows(bucket, without_alarms=arguments.without_alarms)
    done = Exported()
    write(target, with_videos(bucket, rows, done), done, round(arguments.shard_mb * 1e6))
    document = {
        "output": bucket.url, "target": target.url, "format": arguments.format, "clips": done.clips,
        "size_bytes": done.size_bytes, "files": done.files, "missing": done.missing,
    }  # fmt: skip
    lines = [f"{counted(done.clips, 'clip')} ({done.size_bytes / 1e6:,.1f} MB) in {target.url}"]
    if done.missing:
        lines.append(
            f"{counted(len(done.missing), 'video')} not there, such as that of {done.missing[0]}: status --check"
        )
    screen.result(document, "\n".join(lines))
    return Exit.ERROR if done.missing else Exit.OK


def rendered_rows(bucket: Bucket, *, without_alarms: bool) -> Iterator[Row]:
    """Yields the rows of `reports/index.parquet` whose clips are rendered. Raises UsageError without such a file."""
    try:
        data = bucket.read(layout.INDEX)
    except FileNotFoundError as error:
        raise UsageError(f"{bucket.url} has no {layout.INDEX}; first: {own_command('report', bucket.url)}") from error
    for batch in pq.ParquetFile(io.BytesIO(data)).iter_batches():
        for row in batch.to_pylist():
            if row["outcome"] == "rendered" and not (without_alarms and row["alarms"]):
                yield row


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


def facts_of(row: Row) -> dict[str, Any]:
    """Returns what a data set says of a clip: its caption, its settings, all other columns of the manifest, and quality."""
    kept = {name: value for name, value in row.items() if name not in (*_INNER, "prompt") and value is not None}
    return {"caption": row["prompt"], **kept}


Clips = Iterator[tuple[Row, bytes]]


def write_webdataset(target: Bucket, clips: Clips, done: Exported, shard_bytes: int) -> None:
    """Writes `clips-000000.tar`, ...: of each clip NUMBER.mp4, NUMBER.txt (its caption) and NUMBER.json.

    Names are numbers, for readers of this form end a name at its first dot, and a clip's id may have dots.
    """
    with ExitStack() as stack:
        tar: tarfile.TarFile | None = None
        begun_at = 0
        for number, (row, video) in enumerate(clips):
            if tar is None or done.size_bytes - begun_at > shard_bytes:
                stack.close()
                begun_at = done.size_bytes - len(video)
                file: BinaryIO = stack.enter_context(target.open_output(f"clips-{done.files:06d}.tar"))
                tar = stack.enter_context(tarfile.open(fileobj=file, mode="w"))
                done.files += 1
            facts = json.dumps(facts_of(row), ensure_ascii=False, default=str).encode()
            for suffix, data in (("mp4", video), ("txt", str(row["prompt"]).encode()), ("json", facts)):
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_huggingface(target: Bucket, clips: Clips, done: Exported, _: int) -> None:
    """Writes the form of `datasets.load_dataset("videofolder")`: `train/ID.mp4` and `train/metadata.jsonl`."""
    # Last, whole: a folder without it is not finished.
    with target.open_output("train/metadata.jsonl") as metadata:
        for names in _copied(target, "train", clips, done):
            for name, row in names:
                line = json.dumps({"file_name": name, **facts_of(row)}, ensure_ascii=False, default=str)
                metadata.write(line.encode() + b"\n")


def write_csv(target: Bucket, clips: Clips, done: Exported, _: int) -> None:
    """Writes `videos/ID.mp4`, and `clips.csv` with a row for each: where it is, its caption, and all other columns."""
    with target.open_output("clips.csv") as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        writer: csv.DictWriter[str] | None = None
        for names in _copied(target, "videos", clips, done):
            for name, row in names:
                cells = {"file_name": f"videos/{name}", "caption": row["prompt"]}
                cells |= {column: _cell(value) for column, value in row.items() if column not in (*_INNER, "prompt")}
                if writer is None:
                    writer = csv.DictWriter(text, list(cells))
                    writer.writeheader()
                writer.writerow(cells)
        text.detach()


def _copied(target: Bucket, folder: str, clips: Clips, done: Exported) -> Iterator[Sequence[tuple[str, Row]]]:
    """Uploads videos, some at once, and yields their names with their rows."""
    while part := list(itertools.islice(clips, AT_ONCE)):
        named = {f"{row['clip_id']}.mp4": (row, video) for row, video in part}
        _upload(target, folder, {name: video for name, (_, video) in named.items()})
        done.files += len(named)
        yield [(name, row) for name, (row, _) in named.items()]


def _upload(target: Bucket, folder: str, videos: Mapping[str, bytes]) -> None:
    target.map_files(lambda name: target.write(f"{folder}/{name}", videos[name]), videos)


def _cell(value: object) -> object:
    return " ".join(map(str, value)) if isinstance(value, list) else value


Write = Callable[[Bucket, Clips, Exported, int], None]
FORMATS: Mapping[str, tuple[Write, str]] = {
    "webdataset": (write_webdataset, "clips-000000.tar"),
    "huggingface": (write_huggingface, "train/metadata.jsonl"),
    "csv": (write_csv, "clips.csv"),
}
"""By name how a form is written, and a file that says that something was."""
