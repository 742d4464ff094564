"""Whether two URLs mean the same place, or one of them a place inside of the other."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path

from jobs.store.bucket import Bucket
from jobs.store.filesystem import EXTRAS
from pipeline.exits import UsageError

_LOCAL = ("file", "local")


def refuse_places_of_run(run: Bucket, target: Bucket, folder: str) -> None:
    """Raises UsageError if a data set at `target`, with its videos in `folder` there, would lie among the files of a run."""
    if lies_in(target, run):
        raise UsageError(
            f"{target.url} is in the run's own output, whose videos would be written over; name another folder"
        )
    inner = Bucket(f"{target.url}/{folder}")
    if folder and lies_in(inner, run):
        raise UsageError(f"{inner.url} leads into the run's own output; name another folder")
    if lies_in(run, target):
        raise UsageError(f"{target.url} holds the run's own output ({run.url}); name another folder")


def lies_in(inner: Bucket, outer: Bucket) -> bool:
    """Whether a place is another one, or inside of it, however the two are written.

    Local: as the disk says, which knows symbolic links, mounts and names in other case. Remote: by normalized URLs.
    """
    ours, theirs = _local_path(inner), _local_path(outer)
    if ours and theirs:
        return any(_is_same(place, theirs) for place in _upwards(ours))
    if ours or theirs:
        return False
    return f"{_normalized(inner)}/".startswith(f"{_normalized(outer)}/")


def _local_path(bucket: Bucket) -> Path | None:
    protocol, separator, rest = _last_link(bucket.url).partition("://")
    if separator and protocol not in _LOCAL:
        return None
    return Path(rest if separator else protocol).expanduser().resolve()


def _upwards(path: Path) -> Iterator[Path]:
    yield path
    yield from path.parents


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:  # one of the two is not there, or may not be looked at
        return path == other


def _normalized(bucket: Bucket) -> str:
    protocol, _, rest = _last_link(bucket.url).partition("://")
    protocol = protocol.lower()
    authority, _, path = rest.lstrip("/").partition("/")
    # Azure's container@account is the container.
    container = authority.partition("@")[0].lower()
    return f"{EXTRAS.get(protocol, protocol)}://{container}{posixpath.normpath('/' + path.lstrip('/')).rstrip('/')}"


def _last_link(url: str) -> str:
    # Such as simplecache::s3://bucket/run: the last one is where the files are.
    return url.rsplit("::", 1)[-1] if "://" in url else url
