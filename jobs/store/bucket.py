"""The run's folder in object storage, reached through fsspec. A file is either complete or not there.

Local files are written under another name and renamed. S3 objects are one PUT, or a multipart upload that appears only
when it is complete. Nothing is streamed to its final path, where an error half-way would publish a part of the file.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
from fsspec.asyn import sync
from fsspec.utils import get_protocol

from jobs.log import log_event
from jobs.store import layout, local_files
from jobs.store.history import ClipHistory, is_withdrawn
from jobs.store.layout import KINDS
from jobs.store.outgoing import Outgoing
from jobs.store.retry import RetryPolicy, advice, error_code, retry, store_errors, within
from jobs.store.s3_listing import list_names

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
_S3_OPTIONS = {
    # Two layers below also retry (botocore, s3fs). Only ours knows how long to wait, so theirs are kept short.
    "config_kwargs": {
        "connect_timeout": 5, "read_timeout": 30, "retries": {"total_max_attempts": 2, "mode": "standard"},
        "max_pool_connections": 32,
    },
}  # fmt: skip
_S3_RETRIES = 2
_PARALLEL_REQUESTS = 16
_SINGLE_PUT_BYTES = 64 << 20


class BucketError(Exception):
    """The bucket refused, or could not be reached for too long; the message has the URL, the cause and what to do."""


class Bucket:
    """A run's folder. A pickle of it has only URL and retry policy; each process opens the filesystem at its first use.

    `url`: any fsspec URL, or a local path. Credentials and endpoint come from where the library looks for them (environment,
    profile, instance role), never from the URL. Raises BucketError for a URL that contains credentials.
    """

    def __init__(self, url: str, *, retry_policy: RetryPolicy | None = None) -> None:
        if "@" in url.partition("://")[2].partition("/")[0]:
            raise BucketError(
                f"{url.partition('://')[0]}://...: a URL may not hold credentials; set them in the environment"
            )
        self.url = (url if "://" in url or "::" in url else str(Path(url).absolute())).rstrip("/")
        self.retry_policy = retry_policy or RetryPolicy()
        self._opened: tuple[int, Any, str] | None = None

    def __getstate__(self) -> tuple[str, RetryPolicy]:
        return self.url, self.retry_policy

    def __setstate__(self, state: tuple[str, RetryPolicy]) -> None:
        self.url, self.retry_policy = state
        self._opened = None

    def __repr__(self) -> str:
        return f"Bucket({self.url!r})"

    # Writing

    def write(self, path: str, data: bytes) -> None:
        """Writes a file, and replaces an existing one. Raises BucketError."""
        self._with_retries("write", path, lambda fs, full: self._put(fs, full, data))

    def create(self, path: str, data: bytes) -> bool:
        """Writes a file that must not exist yet; returns False if it does.

        If many writers race, exactly one gets True. `data` must contain an id that is unique to the writer: if the server's
        answer is lost, the file is read back to see who wrote it. Raises BucketError.
        """
        assert len(data) <= _SINGLE_PUT_BYTES, f"{path}: some stores create exclusively in a single request only"
        return self._with_retries("create", path, lambda fs, full: self._create(fs, full, data))

    def upload(self, local: Path, path: str) -> None:
        """Uploads a local file, replaces an existing one, and checks what arrived. Raises BucketError."""
        size_bytes = local.stat().st_size
        if size_bytes <= _SINGLE_PUT_BYTES or self._local(self._fs()[0]):
            return self.write(path, local.read_bytes())

        def put(fs: Any, full: str) -> None:
            deadline_s = self.retry_policy.deadline_s(size_bytes)
            if fs.async_impl:
                _await(fs, lambda: fs._put_file(str(local), full), deadline_s)
            else:
                within(deadline_s, lambda: fs.put_file(str(local), full))
            self._check_size(fs, full, size_bytes)

        return self._with_retries("upload", path, put)

    def open_output(self, path: str) -> BinaryIO:
        """Returns a binary file. Closing it writes all of it to `path`; after an error inside `with`, nothing is written."""
        return Outgoing(lambda local: self.upload(local, path))

    def write_json(self, path: str, value: Mapping[str, object]) -> None:
        """Writes a JSON document, and replaces an existing one. Raises BucketError."""
        self.write(path, _json(value))

    def create_json(self, path: str, value: Mapping[str, object]) -> bool:
        """Writes a JSON document that must not exist yet; returns False if it does. Raises BucketError."""
        return self.create(path, _json({**value, "written_by": uuid.uuid4().hex}))

    def remove(self, path: str) -> None:
        """Removes a file, if it is there. Raises BucketError."""

        def rm(fs: Any, full: str) -> None:
            try:
                within(self.retry_policy.operation_s, lambda: fs.rm_file(full))
            except FileNotFoundError:
                return

        self._with_retries("remove", path, rm)

    # Reading

    def read(self, path: str) -> bytes:
        """Returns a file's bytes. Raises FileNotFoundError if there is none, else BucketError."""

        def get(fs: Any, full: str) -> bytes:
            return within(self.retry_policy.deadline_s(1 << 28), lambda: bytes(fs.cat_file(full)))

        return self._with_retries("read", path, get, absent_is_an_answer=True)

    def read_present(self, path: str) -> bytes:
        """Returns the bytes of a file that must exist. Raises BucketError, also if there is none."""
        try:
            return self.read(path)
        except FileNotFoundError as error:
            raise BucketError(f"{self.url}/{path}: there is no such file; submit the run again") from error

    def read_json(self, path: str) -> dict[str, Any]:
        """Returns a JSON document. Raises FileNotFoundError if there is none, else BucketError."""
        try:
            value = json.loads(self.read(path))
        except ValueError as error:
            raise BucketError(
                f"{self.url}/{path}: not a JSON document ({error}); remove it and submit again"
            ) from error
        if not isinstance(value, dict):
            raise BucketError(
                f"{self.url}/{path}: a JSON {type(value).__name__}, needs an object; remove it, submit again"
            )
        return value

    def exists(self, path: str) -> bool:
        """Whether the file is there. Raises BucketError."""

        def info(fs: Any, full: str) -> bool:
            try:
                return within(self.retry_policy.operation_s, lambda: fs.info(full)["type"] == "file")
            except FileNotFoundError:
                return False

        return self._with_retries("look for", path, info)

    def histories(self, keys: Iterable[str]) -> dict[str, ClipHistory]:
        """Returns the histories of these clips; the cost depends on their number, not on the size of the run."""
        return self._map(self._history, keys)

    def records(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Returns the records of these clips; clips without one are left out. Raises BucketError."""

        def record(key: str) -> dict[str, Any] | None:
            try:
                return self.read_json(layout.record(key))
            except FileNotFoundError:
                return None

        return {key: value for key, value in self._map(record, keys).items() if value is not None}

    # Listing

    def names(self, kind: str) -> Iterator[str]:
        """Yields the names in one of `layout.KINDS`; none if the folder does not exist. Raises BucketError."""
        assert kind in KINDS, f"{kind!r} is not one of {KINDS}"
        yield from self._with_retries("list", kind, self._list)

    def recorded_keys(self) -> set[str]:
        """Returns `<clip_id>.<digest>` of every record, from one listing."""
        return {name.removesuffix(".json") for name in self.names("records") if name.endswith(".json")}

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
        self._map(self.remove, paths)
        self._map(self.remove, [layout.failure(key, attempt) for key in chosen for attempt in failures.get(key, ())])
        return sorted(chosen)

    # Below: the filesystem

    def _fs(self) -> tuple[Any, str]:
        if self._opened is None or self._opened[0] != os.getpid():
            protocol = get_protocol(self.url)
            options = _S3_OPTIONS if protocol in ("s3", "s3a") else {}
            try:
                fs, root = fsspec.url_to_fs(self.url, use_listings_cache=False, skip_instance_cache=True, **options)
            except (ImportError, ValueError) as error:
                raise BucketError(
                    f"{self.url}: {error}; install the filesystem's package or name another URL"
                ) from error
            if options:
                fs.retries = _S3_RETRIES
            self._opened = (os.getpid(), fs, root.rstrip("/"))
        return self._opened[1], self._opened[2]

    @staticmethod
    def _local(fs: Any) -> bool:
        return "file" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)

    def _with_retries(
        self, verb: str, path: str, operation: Callable[[Any, str], T], *, absent_is_an_answer: bool = False
    ) -> T:
        fs, root = self._fs()

        def tell(error: BaseException, wait_s: float) -> None:
            fields: dict[str, Any] = {
                "verb": verb,
                "path": path,
                "wait_s": wait_s,
                "error": repr(error),
                "cause": error.__cause__,
            }
            log_event(_LOG, "bucket_retry", level=logging.WARNING, **fields)

        try:
            return retry(lambda: operation(fs, f"{root}/{path}"), self.retry_policy, tell)
        except FileNotFoundError as error:
            if absent_is_an_answer and error_code(error) != "NoSuchBucket":
                raise
            raise self._refused(verb, path, error) from error
        except store_errors() as error:
            raise self._refused(verb, path, error) from error

    def _refused(self, verb: str, path: str, error: Exception) -> BucketError:
        # Some servers send no message. s3fs then says "None", and only the error's cause says what happened.
        cause = f"{type(error).__name__}: {error}" + (f", from {error.__cause__}" if error.__cause__ else "")
        return BucketError(f"cannot {verb} {self.url}/{path} ({cause}); {advice(error, self.retry_policy)}")

    def _put(self, fs: Any, full: str, data: bytes) -> None:
        if self._local(fs):
            local_files.write(Path(full), data)
            return
        options = {}
        if "s3" in fs.protocol and len(data) <= _SINGLE_PUT_BYTES:
            # The server compares this hash with what arrived: a check of the content that costs only a header.
            options["ContentMD5"] = _md5(data)
        self._pipe(fs, full, data, **options)
        self._check_size(fs, full, len(data))

    def _pipe(self, fs: Any, full: str, data: bytes, **options: str) -> None:
        deadline_s = self.retry_policy.deadline_s(len(data))
        if fs.async_impl:
            _await(fs, lambda: fs._pipe_file(full, data, **options), deadline_s)
        else:
            within(deadline_s, lambda: fs.pipe_file(full, data, **options))

    def _check_size(self, fs: Any, full: str, size_bytes: int) -> None:
        found = within(self.retry_policy.operation_s, lambda: fs.info(full)["size"])
        if found != size_bytes:
            raise OSError(f"{full}: {found} bytes arrived of {size_bytes}")

    def _create(self, fs: Any, full: str, data: bytes) -> bool:
        if self._local(fs):
            return local_files.create(Path(full), data)
        try:
            self._pipe(fs, full, data, mode="create")
        except OSError as error:
            taken = error_code(error) in ("PreconditionFailed", "412", "ConditionalRequestConflict")
            if not taken and not isinstance(error, FileExistsError):
                raise
            # The file may be our own, if the answer to an earlier try was lost.
            return within(self.retry_policy.operation_s, lambda: bytes(fs.cat_file(full))) == data
        return True

    def _list(self, fs: Any, full: str) -> list[str]:
        if self._local(fs):
            return local_files.names(Path(full))
        if "s3" in fs.protocol:
            return sync(fs.loop, list_names, fs, full)
        try:
            return [name.rsplit("/", 1)[-1] for name in fs.ls(full, detail=False)]
        except FileNotFoundError:
            return []

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
        recorded = self.exists(layout.record(key))
        return ClipHistory(recorded=recorded, attempts=tuple(attempts), failures=tuple(failures))

    def _mark(self, path: str) -> bytes | None:
        try:
            return self.read(path)
        except FileNotFoundError:
            return None

    def _map(self, function: Callable[[str], T], items: Iterable[str]) -> dict[str, T]:
        items = list(items)
        self._fs()
        with ThreadPoolExecutor(_PARALLEL_REQUESTS, thread_name_prefix="bucket") as pool:
            return dict(zip(items, pool.map(function, items), strict=True))


def _await(fs: Any, make: Callable[[], Any], deadline_s: float) -> None:
    async def go() -> None:
        await asyncio.wait_for(make(), deadline_s)

    sync(fs.loop, go)


def _json(value: Mapping[str, object]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, indent=1) + "\n").encode()


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
