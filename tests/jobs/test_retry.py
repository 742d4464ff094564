"""Which errors are a store's: those are waited for or told as a bucket's refusal; all others are mistakes of ours."""

from __future__ import annotations

import errno
import subprocess
import sys

import aiohttp
import aiohttp.http_exceptions
import botocore.exceptions
import botocore.parsers
import pytest

from jobs.store.retry import RetryPolicy, is_transient, retry, store_errors

AWAY = [
    TimeoutError("no answer"),
    ConnectionResetError("gone"),
    botocore.exceptions.EndpointConnectionError(endpoint_url="http://s3"),
    botocore.exceptions.ReadTimeoutError(endpoint_url="http://s3"),
    botocore.exceptions.ClientError({"Error": {"Code": "SlowDown"}}, "PutObject"),
    botocore.parsers.ResponseParserError("a proxy answered in HTML"),
    aiohttp.ClientPayloadError("half an answer"),
    aiohttp.ServerDisconnectedError(),
    aiohttp.http_exceptions.BadStatusLine("nonsense"),
]
REFUSED = [
    PermissionError("no"),
    OSError(errno.EFBIG, "File too large"),
    OSError(errno.ELOOP, "Too many levels of symbolic links"),
    OSError(errno.EILSEQ, "Invalid or incomplete multibyte or wide character"),
    botocore.exceptions.NoCredentialsError(),
    botocore.exceptions.ClientError({"Error": {"Code": "AccessDenied"}}, "PutObject"),
    aiohttp.InvalidURL("http:/"),
]
OURS = [ValueError("odd"), KeyError("key"), AssertionError("no"), RuntimeError("loop"), AttributeError("x")]


def calls(error: Exception, *, failing: int) -> tuple[int, list[float]]:
    """Returns how often an operation was called that fails so often, and the waits between."""
    waits: list[float] = []
    count = 0

    def operation() -> int:
        nonlocal count
        count += 1
        if count <= failing:
            raise error
        return count

    retry_policy = RetryPolicy(total_s=60, first_wait_s=0.001, longest_wait_s=0.001)
    return retry(operation, retry_policy, lambda _, wait_s: waits.append(wait_s)), waits


@pytest.mark.parametrize("error", AWAY, ids=repr)
def test_a_store_that_is_away_is_tried_again(error: Exception) -> None:
    count, waits = calls(error, failing=2)
    assert (count, len(waits)) == (3, 2)


@pytest.mark.parametrize("error", [*REFUSED, *OURS], ids=repr)
def test_a_refusal_and_a_mistake_of_ours_are_raised_at_once(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        calls(error, failing=1)
    assert raised.value is error
    assert isinstance(error, store_errors()) is (error in REFUSED)
    assert not is_transient(error)


def test_no_library_is_loaded_for_its_errors() -> None:
    script = (
        "import sys\n"
        "from jobs.store.retry import store_errors\n"
        "assert store_errors() == (OSError,)\n"
        "assert not {'botocore', 'aiohttp'} & set(sys.modules)\n"
        "import botocore.exceptions\n"
        "assert botocore.exceptions.ClientError in store_errors()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
