"""A proxy before the S3 server that can be one of the stores of this world, or a network before it.

For a while it cuts connections, holds them back, or answers with an error itself. It holds uploads back until long after
their sender was cut off, answers listings as of a while ago, and, for a whole run, drops the conditions of requests.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.faults.http_message import Request, read_request, sign_again

_CHUNK = 1 << 16
_CONDITION = "if-none-match"
_LATE_ANSWER_S = 10.0
_ERRORS = {
    "500": ("500 Internal Server Error", "InternalError"),
    "503": ("503 Service Unavailable", "SlowDown"),
    "403": ("403 Forbidden", "AccessDenied"),
}
MODES = ("reset", "delay", *_ERRORS)

Listing = Callable[[Request], bytes]
"""Answers a request for a listing with a document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trouble:
    mode: str = "pass"
    until_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stale:
    answer: Listing
    share: float
    until_s: float


@dataclass(slots=True, kw_only=True)
class _Late:
    """Uploads that are to come late: how many, how late, and for which paths."""

    left: int
    by_s: float
    wanted: Callable[[str], bool]
    until_s: float


class Proxy:
    """Forwards one loopback port to another. Requests pass as they are, so signatures over the host name hold."""

    def __init__(self, upstream_port: int, *, secret_key: str = "") -> None:
        self._upstream_port = upstream_port
        self._secret_key = secret_key
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._trouble = _Trouble()
        self._stale: _Stale | None = None
        self._late: _Late | None = None
        self._lock = threading.Lock()
        self._closed = False
        self.drops_conditions = False
        """Whether requests reach the store without their `If-None-Match`."""
        self.hits = 0
        """Requests that met the trouble."""
        self.stale_hits = 0
        self.dropped = 0
        self.late: list[str] = []
        """Paths of uploads that were cut off and came late, or are to come."""
        self.num_coming = 0
        """Late uploads that have not come yet."""

    @property
    def port(self) -> int:
        return self._listener.getsockname()[1]

    def make_trouble(self, mode: str, *, for_s: float) -> None:
        """Begins one of `MODES`; it ends by itself."""
        assert mode in MODES, f"{mode!r} is not one of {MODES}"
        self._trouble = _Trouble(mode=mode, until_s=time.monotonic() + for_s)

    def make_listings_stale(self, answer: Listing, *, for_s: float, share: float) -> None:
        """Lets `answer` answer this share of the requests for listings, for a while."""
        self._stale = _Stale(answer=answer, share=share, until_s=time.monotonic() + for_s)

    def make_uploads_late(self, count: int, *, by_s: float, wanted: Callable[[str], bool], for_s: float) -> None:
        """Cuts off the senders of the next `count` uploads within `for_s`; the store gets what they sent `by_s` later."""
        self._late = _Late(left=count, by_s=by_s, wanted=wanted, until_s=time.monotonic() + for_s)

    @property
    def is_calm(self) -> bool:
        """Whether all that it was told for a while is over, and no upload is still to come."""
        stale = self._stale
        return not self.num_coming and self._mode() == "pass" and (not stale or time.monotonic() >= stale.until_s)

    def calm(self) -> None:
        """Ends all trouble; uploads that are to come late still come."""
        self._trouble, self._stale, self._late, self.drops_conditions = _Trouble(), None, None, False

    def _mode(self) -> str:
        trouble = self._trouble
        return trouble.mode if time.monotonic() < trouble.until_s else "pass"

    def serve(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _connect(self, client: socket.socket) -> None:
        try:
            upstream = socket.create_connection(("127.0.0.1", self._upstream_port), timeout=5)
            upstream.settimeout(None)
        except OSError:
            _reset(client)
            return
        threading.Thread(target=self._answers, args=(upstream, client), daemon=True).start()
        # Closing alone would leave the thread above in its read.
        with contextlib.suppress(OSError, ValueError), upstream, client:
            try:
                while request := read_request(client):
                    if not self._pass_on(request, client, upstream):
                        return
            finally:
                with contextlib.suppress(OSError):
                    upstream.shutdown(socket.SHUT_RDWR)

    def _pass_on(self, request: Request, client: socket.socket, upstream: socket.socket) -> bool:
        """Deals with one request; returns whether its connection goes on."""
        mode = self._mode()
        self.hits += mode != "pass"
        if mode == "reset":
            _reset(client)
            return False
        if mode == "delay":
            time.sleep(1.0)
        elif mode in _ERRORS:
            _refuse(client, mode)
            return False
        if self.drops_conditions and request.header(_CONDITION):
            self.dropped += 1
            request = sign_again(request, self._secret_key, leave_out=(_CONDITION,))
        if request.method == "PUT" and (by_s := self._late_by(request)) is not None:
            threading.Thread(target=self._bring, args=(request, by_s), daemon=True).start()
            _reset(client)
            return False
        stale = self._stale
        if stale and request.is_listing and time.monotonic() < stale.until_s and random.random() < stale.share:
            self.stale_hits += 1
            _answer(client, stale.answer(request))
            return True
        upstream.sendall(request.to_bytes())
        return True

    def _late_by(self, request: Request) -> float | None:
        with self._lock:
            late = self._late
            if not late or not late.left or time.monotonic() > late.until_s or not late.wanted(request.path):
                return None
            late.left -= 1
            self.num_coming += 1
            self.late.append(request.path)
            return late.by_s

    def _bring(self, request: Request, by_s: float) -> None:
        """Brings an upload to the store, whatever became of its sender."""
        try:
            time.sleep(by_s)
            address = ("127.0.0.1", self._upstream_port)
            with contextlib.suppress(OSError), socket.create_connection(address, timeout=_LATE_ANSWER_S) as upstream:
                upstream.sendall(request.to_bytes())
                upstream.recv(_CHUNK)
        finally:
            with self._lock:
                self.num_coming -= 1

    def _answers(self, upstream: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := upstream.recv(_CHUNK):
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _answer(client: socket.socket, body: bytes) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body)


def _refuse(client: socket.socket, mode: str) -> None:
    status, code = _ERRORS[mode]
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>made by the proxy</Message></Error>'
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    client.sendall((head + body).encode())
    client.shutdown(socket.SHUT_WR)
    # What is still on its way is read, or the answer would be lost in a reset.
    client.settimeout(1.0)
    while client.recv(_CHUNK):
        continue


@contextlib.contextmanager
def open_proxy(upstream_port: int, *, secret_key: str = "") -> Iterator[Proxy]:
    """A proxy that serves from a thread of this process. `secret_key`: of the requests whose conditions it is to drop."""
    proxy = Proxy(upstream_port, secret_key=secret_key)
    threading.Thread(target=proxy.serve, name="proxy", daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.close()
