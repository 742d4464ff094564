"""A folder of object storage, reached through fsspec: whole files, retries, deadlines, exclusive creation.

Local files are written under another name and renamed. S3 objects are one PUT, or a multipart upload that appears only
when it is complete. Nothing is streamed to its final path, where an error half-way would publish a part of the file.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import sync
from fsspec.utils import get_protocol

from jobs.log import log_event
from jobs.store import local_files
from jobs.store.content_types import AZURE, kind_of, protocols_of
from jobs.store.retry import (
    NOT_IMPLEMENTED,
    RetryPolicy,
    advice,
    are_credentials_stale,
    retry,
    store_answer,
    store_errors,
    within,
)
from jobs.store.s3_listing import list_sizes

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
_S3_CONFIG = {
    # Two layers below also retry (botocore, s3fs). Only ours knows how long to wait, so theirs are kept short.
    "connect_timeout": 5, "read_timeout": 30, "retries": {"total_max_attempts": 2, "mode": "standard"},
    "max_pool_connections": 32,
}  # fmt: skip
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
"""By protocol, the extra that brings its filesystem."""
_S3_RETRIES = 2
SINGLE_PUT_BYTES = 64 << 20
_ACCOUNT = re.compile(r"[^:@/]+@[^:@/]+")
_END = re.compile(r"(?<=[^:/])/+$")


class BucketError(Exception):
    """The bucket refused, or could not be reached for too long; the message has the URL, the cause and what to do."""


class _TakenMeanwhileError(OSError):
    """A store could not say who won a race for a name: ask again."""


class Filesystem:
    """A folder. A pickle of it has only URL, retry policy and `exclusive`; each process opens the library's filesystem once.

    `url`: any fsspec URL, or a local path. Credentials and endpoint come from where the library looks for them (environment,
    profile, instance role), never from the URL. Raises BucketError for a URL that contains credentials. `exclusive`: whether
    the store itself refuses to create what exists. If it does not, `create` looks first and reads back, which decides
    between writers that come one after the other, but not between writers of the same moment.
    """

    def __init__(self, url: str, *, retry_policy: RetryPolicy | None = None, exclusive: bool = True) -> None:
        protocol, _, rest = url.partition("://")
        authority = rest.partition("/")[0]
        # Azure's URLs name container@account; a password would come after a colon.
        if "@" in authority and not (protocol in AZURE and _ACCOUNT.fullmatch(authority)):
            raise BucketError(f"{protocol}://...: a URL may not hold credentials; set them in the environment")
        # Of a root nothing is cut off: "" would be the current folder.
        self.url = _END.sub("", url if "://" in url or "::" in url else str(Path(url).absolute()))
        self.retry_policy = retry_policy or RetryPolicy()
        self.exclusive = exclusive
        self._opened: tuple[int, Any, str] | None = None

    def __getstate__(self) -> tuple[str, RetryPolicy, bool]:
        return self.url, self.retry_policy, self.exclusive

    def __setstate__(self, state: tuple[str, RetryPolicy, bool]) -> None:
        self.url, self.retry_policy, self.exclusive = state
        self._opened = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def write(self, path: str, data: bytes) -> None:
        """Writes a file, and replaces an existing one. Raises BucketError."""
        self._with_retries("write", path, lambda fs, full: self._put(fs, full, data))

    def create(self, path: str, data: bytes) -> bool:
        """Writes a file that must not exist yet; returns False if it does.

        If many writers race, exactly one gets True, unless the store is not `exclusive`. `data` must contain an id that is
        unique to the writer: if the server's answer is lost, the file is read back to see who wrote it. Raises BucketError.
        """
        assert len(data) <= SINGLE_PUT_BYTES, f"{path}: some stores create exclusively in a single request only"
        create = self._create if self.exclusive else self._create_if_absent
        return self._with_retries("create", path, lambda fs, full: create(fs, full, data))

    def upload(self, local: Path, path: str) -> None:
        """Uploads a local file, replaces an existing one, and checks what arrived. Raises BucketError."""
        size_bytes = local.stat().st_size
        if size_bytes <= SINGLE_PUT_BYTES or self.is_local:
            return self.write(path, local.read_bytes())

        def put(fs: Any, full: str) -> None:
            deadline_s, kind = self.retry_policy.deadline_s(size_bytes), kind_of(fs, full)
            if fs.async_impl:
                _await(fs, lambda: fs._put_file(str(local), full, **kind), deadline_s)
            else:
                within(deadline_s, lambda: fs.put_file(str(local), full, **kind))
            self._check_size(fs, full, size_bytes)

        return self._with_retries("upload", path, put)

    def copy(self, source: str, path: str) -> None:
        """Makes `path` hold what `source` holds: a link to it on a local disk, else a second object. Raises BucketError."""
        if self.is_local:
            there = Path(self._fs()[1]) / source
            if self._with_retries("link", path, lambda _, full: local_files.link(there, Path(full))):
                return
        self.write(path, self.read_present(source))

    def remove(self, path: str) -> None:
        """Removes a file, if it is there. Raises BucketError."""

        def rm(fs: Any, full: str) -> None:
            try:
                within(self.retry_policy.operation_s, lambda: fs.rm_file(full))
            except FileNotFoundError:
                return

        self._with_retries("remove", path, rm)

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

    def size(self, path: str) -> int | None:
        """Returns a file's size in bytes, or None if there is no such file. Raises BucketError."""

        def info(fs: Any, full: str) -> int | None:
            try:
                found = within(self.retry_policy.operation_s, lambda: fs.info(full))
            except FileNotFoundError:
                return None
            return int(found["size"]) if found["type"] == "file" else None

        return self._with_retries("look for", path, info)

    def signed_link(self, path: str, seconds: int) -> str:
        """Returns a link with which anybody may read the file for so many seconds. Asks the store nothing.

        Raises BucketError if this kind of store has no such links, or no key to sign with is known.
        """

        def sign(fs: Any, full: str) -> str:
            # Google's older kind of links is on its way out.
            version = {"version": "v4"} if "gs" in protocols_of(fs) else {}
            try:
                return str(fs.sign(full, expiration=seconds, **version))
            except (AttributeError, TypeError, ValueError) as error:  # so these libraries say that there is no key
                raise BucketError(
                    f"{self.url}: the credentials in use cannot sign links ({error}). gs needs the key file of a service "
                    "account (GOOGLE_APPLICATION_CREDENTIALS), az the key of the account (AZURE_STORAGE_CONNECTION_STRING, "
                    "or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY)"
                ) from error

        try:
            return self._with_retries("sign a link to", path, sign)
        except NotImplementedError as error:
            protocol = self.url.partition("://")[0] if "://" in self.url else "a folder"
            raise BucketError(
                f"{self.url}: {protocol} has no signed links; s3, gs and az have. A folder's page has plain links: copy it "
                "whole, or have a web server show it"
            ) from error

    def listing(self, folder: str) -> dict[str, int]:
        """Returns the names of the files directly in a folder, with their sizes in bytes. Raises BucketError."""
        return self._with_retries("list", folder, self._list)

    def folders(self) -> list[str]:
        """Returns the names of the folders directly in this one. Raises BucketError."""

        def look(fs: Any, full: str) -> list[str]:
            try:
                found = within(self.retry_policy.operation_s, lambda: fs.ls(full.rstrip("/"), detail=True))
            except (FileNotFoundError, NotADirectoryError):
                return []
            return sorted(each["name"].rstrip("/").rsplit("/", 1)[-1] for each in found if each["type"] == "directory")

        return self._with_retries("list", "", look)

    @property
    def is_local(self) -> bool:
        """Whether the files are on a disk of this machine, or one that looks like it."""
        return _is_local(self._fs()[0])

    def _fs(self) -> tuple[Any, str]:
        if self._opened is None or self._opened[0] != os.getpid():
            protocol = get_protocol(self.url)
            options = _s3_options() if protocol in ("s3", "s3a") else {}
            try:
                fs, root = fsspec.url_to_fs(self.url, use_listings_cache=False, skip_instance_cache=True, **options)
            except (ImportError, ValueError) as error:
                package = EXTRAS.get(protocol)
                install = f"pip install 'pab-pipeline[{package}]'" if package else "install the filesystem's package"
                raise BucketError(f"{self.url}: {error}; {install}, or name another URL") from error
            if options:
                fs.retries = _S3_RETRIES
            self._opened = (os.getpid(), fs, root.rstrip("/"))
        return self._opened[1], self._opened[2]

    def _with_retries(
        self, verb: str, path: str, operation: Callable[[Any, str], T], *, absent_is_an_answer: bool = False
    ) -> T:
        def tell(error: BaseException, wait_s: float) -> None:
            fields: dict[str, Any] = {
                "verb": verb,
                "path": path,
                "wait_s": wait_s,
                "error": repr(error),
                "cause": error.__cause__,
            }
            log_event(_LOG, "bucket_retry", level=logging.WARNING, **fields)

        def once() -> T:
            fs, root = self._fs()
            try:
                return operation(fs, f"{root}/{path}")
            except store_errors() as error:
                if not are_credentials_stale(error):
                    raise
                # The library reads credentials once. Whoever renews them writes a file: a new session reads it.
                self._opened = None
                fs, root = self._fs()
                return operation(fs, f"{root}/{path}")

        self._fs()
        try:
            return retry(once, self.retry_policy, tell)
        except FileNotFoundError as error:
            if absent_is_an_answer and store_answer(error).code != "NoSuchBucket":
                raise
            raise self._refused(verb, path, error) from error
        except store_errors() as error:
            raise self._refused(verb, path, error) from error

    def _refused(self, verb: str, path: str, error: Exception) -> BucketError:
        # Some servers send no message. s3fs then says "None", and only the error's cause says what happened.
        cause = f"{type(error).__name__}: {error}" + (f", from {error.__cause__}" if error.__cause__ else "")
        answer = str(store_answer(error))
        said = f"{answer}; {cause}" if answer and answer not in cause else cause
        return BucketError(f"cannot {verb} {self.url}/{path} ({said}); {advice(error, self.retry_policy)}")

    def _put(self, fs: Any, full: str, data: bytes) -> None:
        if _is_local(fs):
            local_files.write(Path(full), data)
            return
        options = {}
        if "s3" in protocols_of(fs) and len(data) <= SINGLE_PUT_BYTES:
            # The server compares this hash with what arrived: a check of the content that costs only a header.
            options["ContentMD5"] = _md5(data)
        self._pipe(fs, full, data, **options)
        self._check_size(fs, full, len(data))

    def _pipe(self, fs: Any, full: str, data: bytes, **options: str) -> None:
        deadline_s, options = self.retry_policy.deadline_s(len(data)), options | kind_of(fs, full)
        if fs.async_impl:
            _await(fs, lambda: fs._pipe_file(full, data, **options), deadline_s)
        else:
            within(deadline_s, lambda: fs.pipe_file(full, data, **options))

    def _check_size(self, fs: Any, full: str, size_bytes: int) -> None:
        found = within(self.retry_policy.operation_s, lambda: fs.info(full)["size"])
        if found != size_bytes:
            raise OSError(f"{full}: {found} bytes arrived of {size_bytes}")

    def _create(self, fs: Any, full: str, data: bytes) -> bool:
        if _is_local(fs):
            return local_files.create(Path(full), data)
        try:
            self._pipe(fs, full, data, mode="create")
        except OSError as error:
            answer = store_answer(error)
            if answer.status == NOT_IMPLEMENTED or answer.code == "NotImplemented":
                return self._create_if_absent(fs, full, data)
            taken = answer.code in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
            if not taken and not isinstance(error, FileExistsError):
                raise
            # The file may be our own, if the answer to an earlier try was lost.
            found = self._found(fs, full)
            if found is None:
                # Refused because of another writer who has not written yet, or whose file is gone again.
                raise _TakenMeanwhileError(f"{full}: another writer was at work on it ({answer})") from error
            return found == data
        return True

    def _create_if_absent(self, fs: Any, full: str, data: bytes) -> bool:
        if (found := self._found(fs, full)) is None:
            self._put(fs, full, data)
            found = self._found(fs, full)
        return found == data

    def _found(self, fs: Any, full: str) -> bytes | None:
        try:
            return within(self.retry_policy.operation_s, lambda: bytes(fs.cat_file(full)))
        except FileNotFoundError:
            return None

    def _list(self, fs: Any, full: str) -> dict[str, int]:
        if _is_local(fs):
            return local_files.sizes(Path(full))
        if "s3" in protocols_of(fs):
            return sync(fs.loop, list_sizes, fs, full)
        try:
            found = fs.ls(full, detail=True)
        except FileNotFoundError:
            return {}
        return {each["name"].rsplit("/", 1)[-1]: int(each["size"] or 0) for each in found if each["type"] == "file"}


def _is_local(fs: Any) -> bool:
    return "file" in protocols_of(fs)


def _s3_options() -> dict[str, Any]:
    # What the user configured for s3fs stays: given options would replace a whole part of it, such as virtual addressing.
    own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": {**_S3_CONFIG, **own}}


def _await(fs: Any, make: Callable[[], Any], deadline_s: float) -> None:
    async def go() -> None:
        await asyncio.wait_for(make(), deadline_s)

    sync(fs.loop, go)


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
