"""Damaged objects of a run: which there are, and how the next submit renders their clips again.

Listings show empty and missing files at no cost. Whether a record and its video say the same takes reading them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from jobs.store import layout
from jobs.store.bucket import Bucket, DamagedError
from jobs.store.damage import content_fault, size_fault
from pipeline.run.state import clip_id

MOST_READ = 20_000
"""Records that `submit` reads to compare them with their videos' sizes; in larger runs it looks at listings only."""
_ROUND = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One damaged object. `key`: of the clip that must be rendered again; empty if none must."""

    path: str
    what: str
    key: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a look at the clips of a run found.

    `misnamed`: by key the video that its record names, of clips whose `videos/<clip_id>.mp4` is missing or of another size.
    """

    damages: tuple[Damage, ...]
    misnamed: Mapping[str, str]


def look_for_damage(bucket: Bucket, keys: Collection[str], *, plain_videos: bool) -> Found:
    """Looks at what listings tell, and at the records of runs of up to `MOST_READ` clips. Raises BucketError."""
    records, sizes = _mine(bucket, keys), _Sizes(bucket)
    # A listing may be a minute late, and another one less late: what looks damaged is asked for by name.
    mended = bucket.recorded_among(key for key, size in records.items() if not size)
    damages = [_empty(key) for key, size in records.items() if not size and key not in mended]
    present = [key for key, size in records.items() if size or key in mended]
    if len(present) > MOST_READ:
        present = [key for key in present if not sizes.has_render(key) or (plain_videos and not sizes.has_plain(key))]
    misnamed: dict[str, str] = {}
    for start in range(0, len(present), _ROUND):
        suspects: dict[str, dict[str, Any]] = {}
        for key, record in _read(bucket, present[start : start + _ROUND]).items():
            if isinstance(record, Damage):
                damages.append(record)
                continue
            path = record["video"]["path"]
            if size_fault(record, sizes.of(path)):
                suspects[key] = record
            elif plain_videos and sizes.of(layout.video(clip_id(key))) != record["video"]["size_bytes"]:
                misnamed[key] = path
        damages += _confirmed(bucket, suspects)
    return Found(damages=(*damages, *_damaged_reports(bucket)), misnamed=misnamed)


def _confirmed(bucket: Bucket, suspects: Mapping[str, Mapping[str, Any]]) -> list[Damage]:
    def fault(key: str) -> str | None:
        return size_fault(suspects[key], bucket.size(suspects[key]["video"]["path"]))

    found = bucket.map_files(fault, suspects)
    return [Damage(path=layout.record(key), what=what, key=key) for key, what in found.items() if what]


def check_all(bucket: Bucket, keys: Collection[str], *, tell: Callable[[int, int], None]) -> list[Damage]:
    """Reads every record, video, plain name and job report of a run. `tell(done, all)`: called on the way.

    Raises BucketError.
    """
    records = _mine(bucket, keys)
    damages = [_empty(key) for key, size in records.items() if not size]
    present = [key for key, size in records.items() if size]
    for start in range(0, len(present), _ROUND):
        tell(start, len(present))
        part = _read(bucket, present[start : start + _ROUND])
        damages += [record for record in part.values() if isinstance(record, Damage)]
        good = {key: record for key, record in part.items() if not isinstance(record, Damage)}
        damages += _damaged_videos(bucket, good)
    return damages + _damaged_reports(bucket)


def _damaged_videos(bucket: Bucket, records: Mapping[str, Mapping[str, Any]]) -> list[Damage]:
    checked = bucket.map_files(lambda key: _check_videos(bucket, key, records[key]), records)
    return [damage for found in checked.values() for damage in found]


def put_aside(bucket: Bucket, damages: Sequence[Damage]) -> set[str]:
    """Moves damaged objects to `history/`, records with the marks of their attempts, so that their clips are rendered again.

    Returns the keys of these clips. Raises BucketError.
    """
    keys = dict.fromkeys(damage.key for damage in damages if damage.key)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    for damage in damages:
        if not damage.key and damage.path.startswith("reports/"):
            _copy_aside(bucket, damage.path, stamp)
            bucket.remove(damage.path)
    if not keys:
        return set()
    attempts, failures = bucket.attempts(), bucket.failures()

    def move(key: str) -> None:
        _copy_aside(bucket, layout.record(key), stamp)
        # The record comes last: if this is interrupted, it is found damaged again.
        for number in attempts.get(key, ()):
            bucket.remove(layout.attempt(key, number))
        for number in failures.get(key, ()):
            bucket.remove(layout.failure(key, number))
        bucket.remove(layout.record(key))

    bucket.map_files(move, keys)
    return set(keys)


def _copy_aside(bucket: Bucket, path: str, stamp: str) -> None:
    try:
        bucket.write(layout.aside(path, stamp), bucket.read(path))
    except FileNotFoundError:  # another submit was faster
        return


def write_plain_names(bucket: Bucket, misnamed: Mapping[str, str]) -> None:
    """Writes `videos/<clip_id>.mp4` from the videos that the records name. Raises BucketError."""
    bucket.map_files(lambda key: bucket.copy(misnamed[key], layout.video(clip_id(key))), misnamed)


class _Sizes:
    """Sizes of videos by path, from two listings."""

    def __init__(self, bucket: Bucket) -> None:
        self._sizes = {
            f"{folder}/{name}": size
            for folder in ("renders", "videos")
            for name, size in bucket.listing(folder).items()
        }
        self._rendered = {
            layout.rendered_key(path.partition("/")[2]) for path, size in self._sizes.items()
            if size and path.startswith("renders/")
        }  # fmt: skip

    def of(self, path: str) -> int | None:
        return self._sizes.get(path)

    def has_render(self, key: str) -> bool:
        return key in self._rendered

    def has_plain(self, key: str) -> bool:
        return bool(self._sizes.get(layout.video(clip_id(key))))


def _mine(bucket: Bucket, keys: Collection[str]) -> dict[str, int]:
    sizes = bucket.listing("records").items()
    found = {name.removesuffix(".json"): size for name, size in sizes if name.endswith(".json")}
    return {key: size for key, size in sorted(found.items()) if key in keys}


def _empty(key: str) -> Damage:
    return Damage(path=layout.record(key), what="it is empty", key=key)


def _damaged_reports(bucket: Bucket) -> list[Damage]:
    _, damaged = bucket.job_reports()
    return [Damage(path=path, what=what) for path, what in damaged.items()]


def _read(bucket: Bucket, keys: Collection[str]) -> dict[str, dict[str, Any] | Damage]:
    def read(key: str) -> dict[str, Any] | Damage | None:
        try:
            return bucket.record(key)
        except FileNotFoundError:  # put aside meanwhile
            return None
        except DamagedError as error:
            return Damage(path=layout.record(key), what=error.what, key=key)

    return {key: found for key, found in bucket.map_files(read, keys).items() if found is not None}


def _check_videos(bucket: Bucket, key: str, record: Mapping[str, Any]) -> list[Damage]:
    path, plain = record["video"]["path"], layout.video(clip_id(key))
    try:
        data = bucket.read(path)
    except FileNotFoundError:
        return [Damage(path=layout.record(key), what=f"its video {path} is not there", key=key)]
    if fault := size_fault(record, len(data)) or content_fault(record, data):
        return [Damage(path=layout.record(key), what=fault, key=key)]
    if plain == path:
        return []
    try:
        is_copy = bucket.read(plain) == data
    except FileNotFoundError:
        return []  # not wanted, or the next submit writes it
    return (
        []
        if is_copy
        else [Damage(path=plain, what=f"it is not {path}, which the record names; remove it and submit again")]
    )
