"""The three usual forms of a data set of videos with captions, and how each is written."""

from __future__ import annotations

import csv
import io
import itertools
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from jobs.store.bucket import Bucket
from pipeline.commands.export_target import FormFiles, Target, tar_file
from pipeline.commands.export_values import Row, cells_of, facts_of, json_line, with_free_keys

AT_ONCE = 16
"""Videos that are in memory at the same time."""
Clips = Iterator[tuple[Row, bytes]]


@dataclass(slots=True)
class Exported:
    """What was written. `missing`: clips whose video is not there."""

    clips: int = 0
    size_bytes: int = 0
    files: int = 0
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a form is to be written. `names`: under which name each column goes in. `shard_bytes`: of a tar file, about."""

    names: Mapping[str, str]
    shard_bytes: int


def write_webdataset(target: Target, clips: Clips, done: Exported, plan: Plan) -> None:
    """Writes `clips-000000.tar`, ...: of each clip NUMBER.mp4, NUMBER.txt (its caption) and NUMBER.json.

    Names are numbers, for readers of this form end a name at its first dot, and a clip's id may have dots. The first file
    appears last: a set without it is not finished.
    """
    with ExitStack() as first, ExitStack() as others:
        tar: tarfile.TarFile | None = None
        begun_at = 0
        for number, (row, video) in enumerate(clips):
            if tar is None or done.size_bytes - begun_at > plan.shard_bytes:
                others.close()
                begun_at = done.size_bytes - len(video)
                output = target.bucket.open_output(target.begin_tar_file(done.files))
                file = (others if done.files else first).enter_context(output)
                tar = others.enter_context(tarfile.open(fileobj=file, mode="w"))
                done.files += 1
            facts = json_line({"caption": row["prompt"], **facts_of(row, plan.names)})
            for suffix, data in (("mp4", video), ("txt", str(row["prompt"]).encode()), ("json", facts)):
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_huggingface(target: Target, clips: Clips, done: Exported, plan: Plan) -> None:
    """Writes the form of `datasets.load_dataset("videofolder")`: `train/ID.mp4` and `train/metadata.jsonl`."""
    with target.bucket.open_output(target.files.last) as metadata:
        for part in _copied(target, clips, done):
            for path, row in part:
                own = {"file_name": path.rpartition("/")[2], "caption": row["prompt"]}
                facts = with_free_keys(facts_of(row, plan.names), _is_opened)
                metadata.write(json_line({**own, **facts}) + b"\n")


def write_csv(target: Target, clips: Clips, done: Exported, plan: Plan) -> None:
    """Writes `videos/ID.mp4`, and `clips.csv` with a row for each: where it is, its caption, and all other columns."""
    with target.bucket.open_output(target.files.last) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        writer = csv.DictWriter(text, ["file_name", "caption", *plan.names.values()])
        writer.writeheader()
        for part in _copied(target, clips, done):
            for path, row in part:
                writer.writerow({"file_name": path, "caption": row["prompt"], **cells_of(row, plan.names)})
        text.detach()


def _copied(target: Target, clips: Clips, done: Exported) -> Iterator[Sequence[tuple[str, Row]]]:
    """Uploads videos, some at once, and yields their paths with their rows."""
    while part := list(itertools.islice(clips, AT_ONCE)):
        named = {target.files.video(row["clip_id"]): (row, video) for row, video in part}
        _upload(target.bucket, {path: video for path, (_, video) in named.items()})
        done.files += len(named)
        yield [(path, row) for path, (row, _) in named.items()]


def _upload(bucket: Bucket, videos: Mapping[str, bytes]) -> None:
    bucket.map_files(lambda path: bucket.write(path, videos[path]), videos)


def _never(_: str) -> bool:
    return False


def _has_caption(name: str) -> bool:
    return name == "caption"


def _has_file_name(name: str) -> bool:
    return name in ("file_name", "caption")


def _is_opened(name: str) -> bool:
    # The reader of this form opens what a column or a nested value of such a name names.
    return name in ("file_name", "file_names") or name.endswith(("_file_name", "_file_names"))


def _is_read_as_video(name: str) -> bool:
    # It makes `video` of `file_name`.
    return name in ("caption", "video") or _is_opened(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """`is_taken`: whether a column of the manifest may not have this name in it. `is_taken_within`: nor a nested value."""

    write: Callable[[Target, Clips, Exported, Plan], None]
    files: FormFiles
    is_taken: Callable[[str], bool]
    is_taken_within: Callable[[str], bool] = _never


FORMS: Mapping[str, Form] = {
    "webdataset": Form(
        write=write_webdataset, files=FormFiles(form="webdataset", last=tar_file(0)), is_taken=_has_caption
    ),
    "huggingface": Form(
        write=write_huggingface,
        files=FormFiles(form="huggingface", last="train/metadata.jsonl", folder="train"),
        is_taken=_is_read_as_video,
        is_taken_within=_is_opened,
    ),
    "csv": Form(
        write=write_csv, files=FormFiles(form="csv", last="clips.csv", folder="videos"), is_taken=_has_file_name
    ),
}
