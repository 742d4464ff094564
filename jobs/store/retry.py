"""Retries for a store that does not answer: which errors are transient, how long to wait, and when to give up."""

from __future__ import annotations

import errno
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

_FINAL_OS_ERRORS = (PermissionError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
_FINAL_ERRNOS = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.EFBIG, errno.ELOOP, errno.EILSEQ,
)  # fmt: skip
_FINAL_CODES = (
    "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoSuchBucket", "ExpiredToken", "InvalidToken",
    "NotImplemented", "QuotaExceeded",
)  # fmt: skip
"""Refusals that name no HTTP status, as some servers and proxies send them."""
_PASSING_CODES = (
    # Refusals by their status, which still pass: the request came late, cut, changed on its way, or beside another one.
    "RequestTimeout", "RequestTimeoutException", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch", "ConditionalRequestConflict", "OperationAborted", "NoSuchUpload", "InvalidPart",
    "Throttling", "ThrottlingException", "TooManyRequestsException", "SlowDown", "RequestLimitExceeded",
)  # fmt: skip
_PASSING_STATUS = (408, 409, 425, 429)
_STALE_CREDENTIALS = (
    "ExpiredToken", "ExpiredTokenException", "InvalidToken", "InvalidAccessKeyId", "RequestExpired",
    "TokenRefreshRequired", "UnrecognizedClientException",
)  # fmt: skip
_CLIENT_ERRORS = {
    # Errors of the client libraries that are not OSErrors, by the module that defines them.
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "botocore.parsers": ("ResponseParserError",),
    "aiohttp.client_exceptions": ("ClientError",),
    "aiohttp.http_exceptions": ("HttpProcessingError",),
    "gcsfs.retry": ("HttpError", "ChecksumError"),
    "azure.core.exceptions": ("AzureError",),
}
_FINAL_CLIENT_ERRORS = (
    "NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "NoRegionError", "ProfileNotFound",
    "InvalidEndpoint", "InvalidURL", "ClientAuthenticationError",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long an operation on the bucket may take, over all its tries, and how long it waits between tries.

    `total_s`: after this time a bucket that does not answer is an error. `operation_s` and `bytes_per_s`: one try may take
    `operation_s + size / bytes_per_s`; without this deadline a server that hangs would block the writer for ever.
    """

    total_s: float = 600.0
    operation_s: float = 60.0
    bytes_per_s: float = 1e6
    first_wait_s: float = 0.2
    longest_wait_s: float = 30.0

    def deadline_s(self, size_bytes: int = 0) -> float:
        """Returns the seconds that one try may take."""
        return self.operation_s + size_bytes / self.bytes_per_s

    def waits(self) -> Iterator[float]:
        """Yields the seconds to wait before each further try: exponential, with jitter, until `total_s` is over."""
        end = time.monotonic() + self.total_s
        longest = self.first_wait_s
        while time.monotonic() < end:
            # Many ranks lose the bucket at the same moment; they must not all retry at the same moment too.
            yield min(random.uniform(longest / 2, longest), max(0.0, end - time.monotonic()))
            longest = min(longest * 2, self.longest_wait_s)


def store_errors() -> tuple[type[Exception], ...]:
    """Returns the types of errors that come from a store or the network, and not from a mistake in this program.

    Call it after an error has occurred, as `except store_errors()` does: only libraries that are loaded by then can have
    raised it, so no other library is imported for its error types.
    """
    loaded = [(sys.modules[module], names) for module, names in _CLIENT_ERRORS.items() if module in sys.modules]
    return (OSError, *(getattr(module, name) for module, names in loaded for name in names if hasattr(module, name)))


def is_transient(error: BaseException) -> bool:
    """Whether the same operation may succeed later: a timeout, a lost connection, a busy server; but not a refusal.

    A store's own answer decides first: 5xx and 429 pass; 3xx, 4xx and 501 do not, except for a few codes.
    """
    answer = store_answer(error)
    if answer.code in _PASSING_CODES:
        return True
    if answer.code in _FINAL_CODES:
        return False
    if answer.status is not None and answer.status >= 300:
        return answer.status in _PASSING_STATUS or (answer.status >= 500 and answer.status != NOT_IMPLEMENTED)
    if isinstance(error, OSError):
        return not isinstance(error, _FINAL_OS_ERRORS) and error.errno not in _FINAL_ERRNOS
    return isinstance(error, store_errors()) and type(error).__name__ not in _FINAL_CLIENT_ERRORS


def are_credentials_stale(error: BaseException) -> bool:
    """Whether the store refused the credentials as old: the file that holds them may have newer ones by now."""
    return store_answer(error).code in _STALE_CREDENTIALS


def advice(error: BaseException, retry_policy: RetryPolicy) -> str:
    """Returns what to do about an error that ended an operation."""
    if is_transient(error):
        return f"the bucket was away for {retry_policy.total_s:.0f} s; submit again when it is back"
    answer = store_answer(error)
    code = answer.code
    if said := next((what for start, what in _ADVICE.items() if code.startswith(start)), ""):
        return said
    if isinstance(error, FileNotFoundError):
        return "create the bucket (or folder) first, or check its name"
    denied = isinstance(error, PermissionError) and answer.status in (None, 401, 403)
    if denied or "Credential" in type(error).__name__:
        return "check credentials, endpoint and the bucket's policy"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space, then give the same command again (of a job: submit again)"
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return "the filesystem, or a limit of this shell (ulimit -f), takes no file of this size; raise it"
    return f"the store refused it ({code}), which waiting does not change" if code else "check the output URL"


_ADVICE = {
    # By how the store's code begins.
    "Expired": "renew the credentials",
    "InvalidToken": "renew the credentials",
    "InvalidAccessKeyId": "check credentials, endpoint and the bucket's policy",
    "SignatureDoesNotMatch": "check credentials, endpoint and the bucket's policy",
    "RequestTimeTooSkewed": "set this machine's clock",
    "KMS.": "the bucket's encryption key cannot be used; ask who owns it",
    "QuotaExceeded": "free some space, or raise the quota",
    "AuthorizationHeaderMalformed": "the region is wrong; set AWS_DEFAULT_REGION to the bucket's",
    "PermanentRedirect": "the bucket is in another region; set AWS_DEFAULT_REGION and the endpoint to the bucket's",
    "NotImplemented": "the store does not know this request; name another store",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreAnswer:
    """What a store answered to a request: its own error code, e.g. `PreconditionFailed`, and the HTTP status.

    The code is empty and the status None where no store answered, or where its answer does not hold them.
    """

    code: str = ""
    status: int | None = None

    def __str__(self) -> str:
        status = "" if self.status is None or self.code == str(self.status) else f"HTTP {self.status}"
        return " ".join(part for part in (self.code, status) if part)


NOT_IMPLEMENTED = 501


def store_answer(error: BaseException) -> StoreAnswer:
    """Returns what the store answered, from the error or its cause: of S3, Google's storage or Azure's."""
    for link in (error, error.__cause__):
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            code = str(response.get("Error", {}).get("Code", ""))
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            # An answer to HEAD has no body: the library makes the status the code.
            return StoreAnswer(code=code, status=_number(status if status is not None else code))
        if link is not None and isinstance(link, store_errors()):
            # Of Google's client `code` is the status of an answer; of others it is given to what is no answer, too.
            names = ("status_code", "status", *(("code",) if type(link).__module__.startswith("gcsfs") else ()))
            numbers = (getattr(link, name, None) for name in names)
            status = next((found for number in numbers if (found := _number(number)) is not None), None)
            if status is not None:
                return StoreAnswer(code=str(getattr(link, "error_code", None) or status), status=status)
    return StoreAnswer()


def _number(value: object) -> int | None:
    return int(str(value)) if str(value).isdigit() else None


def error_code(error: BaseException) -> str:
    """Returns the store's own error code, e.g. `PreconditionFailed`, from the error or its cause; empty if it has none."""
    return store_answer(error).code


def retry(operation: Callable[[], T], retry_policy: RetryPolicy, tell: Callable[[BaseException, float], None]) -> T:
    """Returns the operation's result; retries after transient errors, and calls `tell(error, wait_s)` before each retry.

    Raises the last error if it is not transient, or when the policy's time is over.
    """
    waits = retry_policy.waits()
    while True:
        try:
            return operation()
        except store_errors() as error:
            wait_s = next(waits, None) if is_transient(error) else None
            if wait_s is None:
                raise
            tell(error, wait_s)
            time.sleep(wait_s)


class _Call(threading.Thread, Generic[T]):
    """One call in its own thread, so that it can be abandoned when it hangs."""

    def __init__(self, operation: Callable[[], T]) -> None:
        super().__init__(name="bucket-call", daemon=True)
        self._operation = operation
        self.values: list[T] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        """Stores the value or the error for `within`."""
        try:
            self.values.append(self._operation())
        except BaseException as error:  # the thread's top: `within` raises it in the caller
            self.error = error


def within(deadline_s: float, operation: Callable[[], T]) -> T:
    """Returns the operation's result, or raises TimeoutError after `deadline_s` and abandons the call."""
    call = _Call(operation)
    call.start()
    call.join(deadline_s)
    if call.error is not None:
        raise call.error
    if not call.values:
        raise TimeoutError(f"no answer within {deadline_s:.0f} s")
    return call.values[0]
