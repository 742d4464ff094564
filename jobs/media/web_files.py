"""Reading a file over HTTP(S) with bounds on its bytes and its time, from public addresses only unless others are allowed.

A name may resolve to another address each time it is asked, and an answer may redirect. So addresses are checked where the
connection is made, for each connection.
"""

from __future__ import annotations

import asyncio
import socket
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import aiohttp
import fsspec
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from fsspec.asyn import sync

from jobs.media.reference_access import PRIVATE_FLAG, UnusableReferenceError

_PIECE_BYTES = 1 << 16
_MAX_REDIRECTS = 10
_CONNECT_S, _READ_S = 10.0, 30.0
_TRY_AGAIN = (408, 425, 429)


class PrivateAddressError(OSError):
    """A host has an address that references may not lead to; the message names it."""


class LateError(OSError):
    """A file did not come in time. fsspec throws the message of a TimeoutError away."""


def read_web(
    url: str, *, allowed: Callable[[str], bool], max_bytes: int, deadline_s: Callable[[int | None], float]
) -> bytes:
    """Returns a file's bytes. `allowed`: whether an IP address may be connected to.

    `deadline_s`: the seconds for all of it, by its size in bytes (None: the server does not say). Raises
    UnusableReferenceError for what asking again does not change, FileNotFoundError, OSError or aiohttp's errors otherwise.
    """
    fs, path = fsspec.url_to_fs(url, get_client=partial(_client, allowed))
    data: bytes = sync(fs.loop, _read, fs, path, max_bytes, deadline_s)
    return data


async def _client(allowed: Callable[[str], bool], **options: Any) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(resolver=_Resolver(allowed), socket_factory=partial(_socket, allowed))
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_READ_S)
    # What is packed is unpacked here, with a bound.
    ours = {"connector": connector, "auto_decompress": False}
    return aiohttp.ClientSession(**{"timeout": timeout, **options, **ours})


class _Resolver(AbstractResolver):
    """Refuses a name if any of its addresses is not allowed."""

    def __init__(self, allowed: Callable[[str], bool]) -> None:
        self._allowed = allowed
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Returns the addresses of a host. Raises PrivateAddressError."""
        found = await self._inner.resolve(host, port, family)
        for result in found:
            _check(self._allowed, result["host"])
        return found

    async def close(self) -> None:
        """Closes the resolver."""
        await self._inner.close()


def _socket(allowed: Callable[[str], bool], address: Any) -> socket.socket:
    # Also for hosts that are written as an address, which no resolver sees.
    family, kind, protocol, _, where = address
    _check(allowed, where[0])
    return socket.socket(family=family, type=kind, proto=protocol)


def _check(allowed: Callable[[str], bool], address: str) -> None:
    if not allowed(address):
        raise PrivateAddressError(f"it leads to {address}, which is no public address")


async def _read(fs: Any, url: str, max_bytes: int, deadline_s: Callable[[int | None], float]) -> bytes:
    clock = asyncio.get_running_loop().time
    begun = clock()
    options = dict(fs.kwargs)
    headers = {"Accept-Encoding": "identity", **(options.pop("headers", None) or {})}
    try:
        async with asyncio.timeout(deadline_s(None)) as limit:
            session = await fs.set_session()
            async with session.get(
                fs.encode_url(url), headers=headers, max_redirects=_MAX_REDIRECTS, **options
            ) as response:
                _check_status(response, url)
                told = response.content_length
                if told is not None and told > max_bytes:
                    raise _too_large(max_bytes, f"it has {told / 1e9:.1f} GB")
                limit.reschedule(begun + deadline_s(told))
                return await _body(response, max_bytes)
    except TimeoutError as error:
        raise LateError(f"the file did not come within {clock() - begun:.0f} s") from error
    except (aiohttp.InvalidURL, aiohttp.RedirectClientError, aiohttp.TooManyRedirects, ValueError) as error:
        raise UnusableReferenceError(f"it is, or it redirects to, no URL that can be read ({error})") from error
    except (OSError, aiohttp.ClientError) as error:
        if (found := _private(error)) is not None:
            raise UnusableReferenceError(
                f"{found}; if the manifest may read from there, give {PRIVATE_FLAG}"
            ) from error
        raise


def _check_status(response: aiohttp.ClientResponse, url: str) -> None:
    if response.status in (404, 410):
        raise FileNotFoundError(url)
    if 400 <= response.status < 500 and response.status not in _TRY_AGAIN:
        raise UnusableReferenceError(f"it cannot be read (its server answers {response.status} {response.reason})")
    response.raise_for_status()


async def _body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    unpacked = _unpacker(response.headers.get("Content-Encoding", "identity").strip().lower())
    data = bytearray()
    async for piece in response.content.iter_chunked(_PIECE_BYTES):
        for part in unpacked(piece):
            data += part
            if len(data) > max_bytes:
                raise _too_large(max_bytes, "more came")
    return bytes(data)


def _unpacker(encoding: str) -> Callable[[bytes], Iterator[bytes]]:
    """Returns what unpacks an answer's pieces, at most a megabyte at a time: a piece may hold a thousand times its size."""
    if encoding in ("", "identity"):
        return lambda piece: iter((piece,))
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise UnusableReferenceError(f"its server packs it as {encoding[:40]!r}, which was not asked for")
    packed = zlib.decompressobj(wbits=47)

    def unpack(piece: bytes) -> Iterator[bytes]:
        rest = piece
        try:
            while rest:
                yield packed.decompress(rest, 1 << 20)
                rest = packed.unconsumed_tail
        except zlib.error as error:
            raise UnusableReferenceError(
                f"its server packs it as {encoding}, and it does not unpack ({error})"
            ) from error

    return unpack


def _too_large(max_bytes: int, found: str) -> UnusableReferenceError:
    return UnusableReferenceError(f"{found}, at most {max_bytes / 1e9:.2f} GB are read; give a smaller file")


def _private(error: BaseException | None) -> PrivateAddressError | None:
    for _ in range(8):
        if error is None or isinstance(error, PrivateAddressError):
            return error
        error = error.__cause__ or error.__context__ or getattr(error, "os_error", None)
    return None
