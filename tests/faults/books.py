"""The books of a run: what became of every clip, read from the bucket itself, past the program and its proxy."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import s3fs
from botocore.exceptions import BotoCoreError

from tests.cluster.daemons.ceph import S3Server
from tests.pipeline.command import num_frames


@dataclass(slots=True, kw_only=True)
class Books:
    """What was found, in words where something is wrong.

    A clip is recorded by exactly one record, failed with none and a failure, else lost. `again`: attempt marks
    beyond one per recorded clip, also those that were removed again.
    """

    clips: int = 0
    recorded: int = 0
    failed: int = 0
    again: int = 0
    lost: list[str] = field(default_factory=list)
    half_written: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.half_written or self.changed)

    def add(self, other: Books) -> None:
        for name in ("clips", "recorded", "failed", "again", "lost", "half_written", "changed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Ledger:
    """Remembers every record of a run as it was first seen, and every mark: `retry` removes marks."""

    def __init__(self, server: S3Server, url: str) -> None:
        self._url = url
        self._seen: dict[str, str] = {}
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
        """Takes in new records; returns how many there are. Knows no more than before while the server is away."""
        try:
            for name in self._names("records"):
                if name not in self._seen:
                    self._seen[name] = _sha256(self._read(f"records/{name}"))
            self._see_marks()
        except (OSError, BotoCoreError, aiohttp.ClientError):
            return len(self._seen)
        return len(self._seen)

    def _see_marks(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            files = self._fs.ls(f"{self._url}/attempts", detail=True)
            self._marks |= {(file["name"].rsplit("/", 1)[-1], file["ETag"]) for file in files}

    def failed(self) -> set[str]:
        """Returns the clips that have a failure and no record. Raises OSError if the server is away."""
        failed, recorded = (
            {name.split(".")[0] for name in self._names(kind)} for kind in ("failures", "records")
        )  # fmt: skip
        return failed - recorded

    def close(self, clip_ids: list[str]) -> Books:
        """Checks everything that the run has left. Raises OSError if the server is away."""
        books = Books(clips=len(clip_ids))
        records = {name: self._read(f"records/{name}") for name in self._names("records")}
        books.changed = [
            f"{self._url}/records/{name}: not what it was when first seen"
            for name, digest in self._seen.items()
            if name not in records or _sha256(records[name]) != digest
        ]
        failed = Counter(name.split(".")[0] for name in self._names("failures"))
        self._see_marks()
        marks = Counter(name.split(".")[0] for name, _ in self._marks)
        recorded = Counter(name.split(".")[0] for name in records)
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
        for name, data in records.items():
            books.half_written += self._wrong(name, data)
        books.half_written += [
            f"{self._url}/videos/{name}: a video without a record"
            for name in self._names("videos")
            if not recorded[name.removesuffix(".mp4")]
        ]
        return books

    def _wrong(self, name: str, data: bytes) -> list[str]:
        path = f"{self._url}/records/{name}"
        try:
            record: dict[str, Any] = json.loads(data)
            video = self._read(record["video"]["path"])
        except (ValueError, KeyError, FileNotFoundError) as error:
            return [f"{path}: {error!r}"]
        if _sha256(video) != record["video"]["sha256"]:
            return [f"{path}: the video is not the one recorded"]
        with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
            file.write(video)
            file.flush()
            played = num_frames(Path(file.name))
        wanted = record["clip"]["num_frames"]
        return [] if played == wanted else [f"{path}: the video plays {played} frames, recorded are {wanted}"]

    def _names(self, kind: str) -> list[str]:
        try:
            return [path.rsplit("/", 1)[-1] for path in self._fs.ls(f"{self._url}/{kind}", detail=False)]
        except FileNotFoundError:
            return []

    def _read(self, path: str) -> bytes:
        return bytes(self._fs.cat_file(f"{self._url}/{path}"))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
