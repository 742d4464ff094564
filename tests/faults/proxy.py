"""A proxy before the S3 server that can, for a while, cut connections, hold them back, or answer with an error itself."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

_CHUNK = 1 << 16
_ERRORS = {
    "500": ("500 Internal Server Error", "InternalError"),
    "503": ("503 Service Unavailable", "SlowDown"),
    "403": ("403 Forbidden", "AccessDenied"),
}
MODES = ("reset", "delay", *_ERRORS)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trouble:
    mode: str = "pass"
    until_s: float = 0.0


class Proxy:
    """Forwards one loopback port to another. It passes bytes on as they are, so signatures over the host name hold."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._trouble = _Trouble()
        self._closed = False
        self.hits = 0
        """Connections or requests that met the trouble."""

    @property
    def port(self) -> int:
        return self._listener.getsockname()[1]

    def make_trouble(self, mode: str, *, for_s: float) -> None:
        """Begins one of `MODES`; it ends by itself."""
        assert mode in MODES, f"{mode!r} is not one of {MODES}"
        self._trouble = _Trouble(mode=mode, until_s=time.monotonic() + for_s)

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
        self._requests(client, upstream)

    def _requests(self, client: socket.socket, upstream: socket.socket) -> None:
        with contextlib.suppress(OSError), upstream, client:
            while data := client.recv(_CHUNK):
                mode = self._mode()
                self.hits += mode != "pass"
                if mode == "reset":
                    _reset(client)
                    return
                if mode == "delay":
                    time.sleep(1.0)
                elif mode in _ERRORS:
                    _answer(client, mode)
                    return
                upstream.sendall(data)

    def _answers(self, upstream: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := upstream.recv(_CHUNK):
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _answer(client: socket.socket, mode: str) -> None:
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
def open_proxy(upstream_port: int) -> Iterator[Proxy]:
    """A proxy that serves from a thread of this process."""
    proxy = Proxy(upstream_port)
    threading.Thread(target=proxy.serve, name="proxy", daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.close()
