"""The run's folder in object storage: its documents, listings of its parts, and what they say of clips."""

from __future__ import annotations

import itertools
import json
import logging
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, TypeVar

from jobs.log import log_event
from jobs.store import layout
from jobs.store.damage import record_fault, report_fault
from jobs.store.filesystem import BucketError, Filesystem
from jobs.store.history import ClipHistory, is_withdrawn
from jobs.store.layout import KINDS
from jobs.store.outgoing import Outgoing

__all__ = ["Bucket", "BucketError", "DamagedError"]

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
_PARALLEL_REQUESTS = 16


class DamagedError(BucketError):
    """A file is there, but it does not hold what it must. `what`: what is wrong with it; the message also says where."""

    def __init__(self, place: str, what: str, action: str = "remove it and submit again") -> None:
        super().__init__(f"{place}: {what}; {action}")
        self.what = what


class Bucket(Filesystem):
    """A run's folder. All paths are relative to it; `jobs.store.layout` makes them."""

    # Writing

    def open_output(self, path: str) -> BinaryIO:
        """Returns a binary file. Closing it writes all of it to `path`; after an error inside `with`, nothing is written."""
        return Outgoing(lambda local: self.upload(local, path))

    def write_json(self, path: str, value: Mapping[str, object]) -> None:
        """Writes a JSON document, and replaces an existing one. Raises BucketError."""
        self.write(path, _json(value))

    def create_json(self, path: str, value: Mapping[str, object]) -> bool:
        """Writes a JSON document that must not exist yet; returns False if it does. Raises BucketError."""
        return self.create(path, _json({**value, "written_by": uuid.uuid4().hex}))

    def test_exclusive(self) -> bool:
        """Finds out whether the store refuses to create what exists, by trying, and keeps the answer. Raises BucketError."""
        path = layout.claim(f"test-{uuid.uuid4().hex}")
        self.exclusive = True
        try:
            self.exclusive = self.create(path, b"first") and not self.create(path, b"second")
        finally:
            self.remove(path)
        return self.exclusive

    # Reading

    def read_json(self, path: str) -> dict[str, Any]:
        """Returns a JSON document. Raises FileNotFoundError if there is none, DamagedError, else BucketError."""
        try:
            value = json.loads(self.read(path))
        except (ValueError, RecursionError) as error:
            raise DamagedError(f"{self.url}/{path}", f"it is not a JSON document ({error})") from error
        if not isinstance(value, dict):
            raise DamagedError(f"{self.url}/{path}", f"it is a JSON {type(value).__name__}, needs an object")
        return value

    def exists(self, path: str) -> bool:
        """Whether the file is there. Raises BucketError."""
        return self.size(path) is not None

    def histories(self, keys: Iterable[str]) -> dict[str, ClipHistory]:
        """Returns the histories of these clips; the cost depends on their number, not on the size of the run."""
        return self.map_files(self._history, keys)

    def records(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Returns the records of these clips. Clips without one, or with a damaged one, are left out. Raises BucketError."""

        def record(key: str) -> dict[str, Any] | None:
            try:
                return self.record(key)
            except FileNotFoundError:
                return None
            except DamagedError as error:
                log_event(_LOG, "record_damaged", level=logging.WARNING, error=str(error))
                return None

        return {key: value for key, value in self.map_files(record, keys).items() if value is not None}

    def record(self, key: str) -> dict[str, Any]:
        """Returns a clip's record. Raises FileNotFoundError if there is none, DamagedError, else BucketError."""
        record = self.read_json(layout.record(key))
        if fault := record_fault(record, key):
            raise DamagedError(f"{self.url}/{layout.record(key)}", fault)
        return record

    def job_report(self, name: str) -> dict[str, Any]:
        """Returns the report of a job, `job-00007`. Raises FileNotFoundError, DamagedError, else BucketError."""
        path = layout.job_report(layout.shard_of(name))
        report = self.read_json(path)
        if fault := report_fault(report):
            raise DamagedError(f"{self.url}/{path}", fault)
        return report

    def job_reports(self, newest: int | None = None) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """Returns the jobs' reports, by shard, and of those that are damaged, by path, what is wrong.

        `newest`: only so many, of the latest shards. Raises BucketError.
        """
        found = (layout.report_of(name) for name in self.names("reports"))
        names = sorted(name for name in found if name)[-newest if newest else None :]

        def report(name: str) -> dict[str, Any] | str:
            try:
                return self.job_report(name)
            except FileNotFoundError:
                return "it is gone"
            except DamagedError as error:
                return error.what

        told = self.map_files(report, names)
        damaged = {f"reports/{name}.json": what for name, what in told.items() if isinstance(what, str)}
        return [each for each in told.values() if isinstance(each, dict)], damaged

    # Listing

    def names(self, kind: str) -> Iterator[str]:
        """Yields the names in one of `layout.KINDS`; none if the folder does not exist. Raises BucketError."""
        assert kind in KINDS, f"{kind!r} is not one of {KINDS}"
        yield from self.listing(kind)

    def recorded_keys(self) -> set[str]:
        """Returns `<clip_id>.<digest>` of every record, from one listing. An empty file is no record."""
        sizes = self.listing("records")
        return {name.removesuffix(".json") for name, size in sizes.items() if size and name.endswith(".json")}

    def recorded_among(self, keys: Iterable[str]) -> set[str]:
        """Returns which of these clips have a record, by asking for each: a listing may be late. Raises BucketError."""
        return {key for key, found in self.map_files(self.is_recorded, keys).items() if found}

    def is_recorded(self, key: str) -> bool:
        """Whether the clip has a record. An empty file is none. Raises BucketError."""
        return bool(self.size(layout.record(key)))

    def failures(self) -> dict[str, list[int]]:
        """Returns, by clip key, the numbers of the attempts that left a failure, ascending; from one listing."""
        return layout.attempts_by_key(name.removesuffix(".json") for name in self.names("failures"))

    def attempts(self) -> dict[str, list[int]]:
        """Returns, by clip key, the numbers of the attempts that left a mark, ascending; from one listing."""
        return layout.attempts_by_key(self.names("attempts"))

    def counts(self) -> dict[str, int]:
        """Returns the number of files by kind."""
        return {kind: sum(1 for _ in self.names(kind)) for kind in KINDS}

    def forget_failures(self, keys: Iterable[str] | None = None) -> list[str]:
        """Removes failures and attempt marks of unrecorded clips, so that they are tried again; returns their keys.

        `keys`: only these clips; None for all that have a failure. Raises BucketError.
        """
        failures, attempts = self.failures(), self.attempts()
        chosen = set(failures) if keys is None else set(keys) & (set(failures) | set(attempts))
        chosen -= self.recorded_keys()
        paths = [layout.attempt(key, attempt) for key in chosen for attempt in attempts.get(key, ())]
        # Failures come last: if this is interrupted, the clip still counts as failed and `retry` finds it again.
        self.map_files(self.remove, paths)
        self.map_files(
            self.remove, [layout.failure(key, attempt) for key in chosen for attempt in failures.get(key, ())]
        )
        return sorted(chosen)

    def _history(self, key: str) -> ClipHistory:
        attempts: list[int] = []
        failures: list[int] = []
        for number in itertools.count(1):
            mark = self._mark(layout.attempt(key, number))
            # An interruption can remove a mark although the attempt has failed on another rank.
            failed = self.exists(layout.failure(key, number))
            attempts += [number] if mark is not None and not is_withdrawn(mark) else []
            failures += [number] if failed else []
            if mark is None and not failed:
                break
        return ClipHistory(recorded=self.is_recorded(key), attempts=tuple(attempts), failures=tuple(failures))

    def _mark(self, path: str) -> bytes | None:
        try:
            return self.read(path)
        except FileNotFoundError:
            return None

    def map_files(self, function: Callable[[str], T], items: Iterable[str]) -> dict[str, T]:
        """Returns the function's value for each item; 16 at once. Raises the first error."""
        items = list(items)
        self._fs()
        with ThreadPoolExecutor(_PARALLEL_REQUESTS, thread_name_prefix="bucket") as pool:
            return dict(zip(items, pool.map(function, items), strict=True))


_UNPRINTABLE = re.compile(r"[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def _json(value: Mapping[str, object]) -> bytes:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, indent=1)
    # People look at these files in a terminal. JSON itself escapes only the first 32 characters.
    return (_UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n").encode()
