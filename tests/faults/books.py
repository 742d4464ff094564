"""The books of a run: what became of every clip, read from the bucket itself, past the program and its proxy."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow as pa
import pyarrow.parquet as pq
import s3fs
from botocore.exceptions import BotoCoreError

from tests.cluster.daemons.ceph import S3Server
from tests.pipeline.command import num_frames

_FOLDERS = ("records", "failures", "attempts", "renders", "videos")


@dataclass(slots=True, kw_only=True)
class Books:
    """What was found, in words where something is wrong.

    A clip is recorded by exactly one record, failed with none and a failure, else lost. `again`: attempt marks
    beyond one per recorded clip, also those that were removed again. `orphans`: videos in `renders/` that no record names,
    which cost space and nothing else. `misnamed`: plain names that do not show what their record names. `strangers`: what
    lies there of a manifest that was refused. `broken`: other promises that a fault found broken.
    """

    clips: int = 0
    recorded: int = 0
    failed: int = 0
    again: int = 0
    orphans: int = 0
    lost: list[str] = field(default_factory=list)
    half_written: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    misnamed: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[str]:
        """All that is wrong."""
        return [*self.lost, *self.half_written, *self.changed, *self.misnamed, *self.strangers, *self.broken]

    @property
    def is_clean(self) -> bool:
        return not self.wrong

    def add(self, other: Books) -> None:
        for name in (each.name for each in fields(self)):
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Ledger:
    """Remembers every record of a run as it was first seen, and every mark: `retry` removes marks."""

    def __init__(self, server: S3Server, url: str) -> None:
        self._url = url
        self._seen: dict[str, str] = {}
        self._damaged: set[str] = set()
        self._marks: set[tuple[str, str]] = set()
        self._fs = s3fs.S3FileSystem(
            key=server.access_key,
            secret=server.secret_key,
            endpoint_url=server.endpoint,
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={"connect_timeout": 2, "read_timeout": 5, "retries": {"total_max_attempts": 1}},
        )

    def look(self) -> int:
        """Takes in new records; returns how many there are. Knows no more than before while the server is away.

        A record that a fault damaged counts when it is whole again, and its video too.
        """
        try:
            for name in self.names("records"):
                if name not in self._seen:
                    data = self.read(f"records/{name}")
                    if name not in self._damaged or not self._wrong(name, data):
                        self._seen[name] = _sha256(data)
            self._see_marks()
        except (OSError, BotoCoreError, aiohttp.ClientError):
            return len(self._seen)
        return len(self._seen)

    def damage(self, path: str, *, kept: float) -> None:
        """Cuts an object down to a share of its bytes; the record that goes with it may change from now on.

        Raises OSError if the server is away, FileNotFoundError if the object is gone.
        """
        folder, _, name = path.rpartition("/")
        data = self.read(path)
        if folder in ("records", "renders"):
            record = f"{'.'.join(name.split('.')[:2])}.json"
            self._damaged.add(record)
            self._seen.pop(record, None)
        self._fs.pipe_file(f"{self._url}/{path}", data[: int(len(data) * kept)])

    def failed(self) -> set[str]:
        """Returns the clips that have a failure and no record. Raises OSError if the server is away."""
        failed, recorded = (
            {name.split(".")[0] for name in self.names(kind)} for kind in ("failures", "records")
        )  # fmt: skip
        return failed - recorded

    def close(self, clip_ids: Collection[str], *, refused: Collection[str] = ()) -> Books:
        """Checks everything that the run has left. `refused`: clips of a manifest that must have left nothing.

        Raises OSError if the server is away.
        """
        books = Books(clips=len(clip_ids))
        records = {name: self.read(f"records/{name}") for name in self.names("records")}
        books.changed = [
            f"{self._url}/records/{name}: not what it was when first seen"
            for name, digest in self._seen.items()
            if name not in self._damaged and (name not in records or _sha256(records[name]) != digest)
        ]
        self._count(books, clip_ids, Counter(name.split(".")[0] for name in records))
        for name, data in records.items():
            books.half_written += self._wrong(name, data)
        books.half_written += self._videos_without_record(records)
        books.broken += self._against_the_guard(records)
        books.half_written += [*self._wrong_manifest(clip_ids), *self._wrong_reports()]
        videos = {name.split(".")[0]: _video(data) for name, data in records.items()}
        books.misnamed = [text for clip_id, video in videos.items() if (text := self._wrong_name(clip_id, video))]
        books.orphans = len(
            {f"renders/{name}" for name in self.names("renders")}
            - {str(video.get("path")) for video in videos.values()}
        )
        books.strangers = [
            f"{self._url}/{kind}/{name}: of a manifest that was refused"
            for kind in _FOLDERS
            for name in self.names(kind)
            if name.split(".")[0] in refused
        ]
        return books

    def _count(self, books: Books, clip_ids: Collection[str], recorded: Counter[str]) -> None:
        failed = Counter(name.split(".")[0] for name in self.names("failures"))
        self._see_marks()
        marks = Counter(name.split(".")[0] for name, _ in self._marks)
        for clip_id in clip_ids:
            if recorded[clip_id] == 1:
                # A failure beside it is another job's, of two submits at once: the record outweighs it.
                books.recorded += 1
                books.again += max(0, marks[clip_id] - 1)
            elif recorded[clip_id] == 0 and failed[clip_id]:
                books.failed += 1
            else:
                books.lost.append(
                    f"{self._url}: {clip_id} has {recorded[clip_id]} records, {failed[clip_id]} failures and "
                    f"{marks[clip_id]} marks"
                )

    def _see_marks(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            files = self._fs.ls(f"{self._url}/attempts", detail=True)
            self._marks |= {(file["name"].rsplit("/", 1)[-1], file["ETag"]) for file in files}

    def _wrong(self, name: str, data: bytes) -> list[str]:
        path = f"{self._url}/records/{name}"
        try:
            record: dict[str, Any] = json.loads(data)
            video = self.read(record["video"]["path"])
            named = f"{record['clip_id']}.{record['digest']}.json"
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            return [f"{path}: {error!r}"]
        if named != name:
            return [f"{path}: it is the record of {named}"]
        if _sha256(video) != record["video"]["sha256"]:
            return [f"{path}: the video is not the one recorded"]
        with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
            file.write(video)
            file.flush()
            played = num_frames(Path(file.name))
        wanted = record["clip"]["num_frames"]
        return [] if played == wanted else [f"{path}: the video plays {played} frames, recorded are {wanted}"]

    def _wrong_name(self, clip_id: str, video: Mapping[str, Any]) -> str | None:
        plain = f"videos/{clip_id}.mp4"
        try:
            found = _sha256(self.read(plain))
        except FileNotFoundError:
            return f"{self._url}/{plain}: not there, although the clip is recorded"
        if found != video.get("sha256"):
            return f"{self._url}/{plain}: not the video that the record names"
        return None

    def _videos_without_record(self, records: Collection[str]) -> list[str]:
        recorded = {name.split(".")[0] for name in records}
        return [
            f"{self._url}/videos/{name}: a video without a record"
            for name in self.names("videos")
            if name.removesuffix(".mp4") not in recorded
        ]

    def _against_the_guard(self, records: Mapping[str, bytes]) -> list[str]:
        """Returns clips that were begun after their job's guard had decided, and came out by another plan.

        Every clip of a guarded run has the same plan, so a job has one decision or none.
        """
        decisions = {int(name.split(".")[0].removeprefix("job-")): name for name in self.names("guard")}
        wrong = []
        for shard, name in decisions.items():
            decided = _json(self.read(f"guard/{name}"))
            for path, data in records.items():
                record = _json(data)
                if record.get("job", {}).get("shard") != shard or record["started_at"] < decided.get("decided_at", "~"):
                    continue
                if record["plan"].get("rendered") != (decided["rendered"] if decided["stepped_down"] else None):
                    wrong.append(
                        f"{self._url}/records/{path}: by {record['plan'].get('rendered', 'the plan asked for')}, "
                        f"but {name} says {decided['rendered']}"
                    )
        return wrong

    def _wrong_manifest(self, clip_ids: Collection[str]) -> list[str]:
        path = f"{self._url}/manifest.parquet"
        try:
            found = pq.read_table(io.BytesIO(self.read("manifest.parquet")), columns=["clip_id"])
        except (pa.ArrowException, FileNotFoundError) as error:
            return [f"{path}: {error!r}"]
        return (
            [] if set(found["clip_id"].to_pylist()) == set(clip_ids) else [f"{path}: it has other clips than the run"]
        )

    def _wrong_reports(self) -> list[str]:
        wrong = []
        for name in self.names("reports"):
            if name.endswith(".json"):
                try:
                    json.loads(self.read(f"reports/{name}"))
                except ValueError as error:
                    wrong.append(f"{self._url}/reports/{name}: {error!r}")
        return wrong

    def names(self, kind: str) -> list[str]:
        """Returns the names in a folder of the run. Raises OSError if the server is away."""
        try:
            paths = self._fs.ls(f"{self._url}/{kind}", detail=False)
        except FileNotFoundError:
            return []
        return [name for path in paths if (name := path.rsplit("/", 1)[-1])]

    def read(self, path: str) -> bytes:
        """Returns an object of the run. Raises FileNotFoundError, OSError if the server is away."""
        return bytes(self._fs.cat_file(f"{self._url}/{path}"))


def _video(record: bytes) -> dict[str, Any]:
    video = _json(record).get("video")
    return video if isinstance(video, dict) else {}


def _json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
