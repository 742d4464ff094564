"""Rank 0's gate: the one port of a job that other machines reach, and only with the job's secret.

Each rank holds one connection to it, its lifeline. The system closes it when the process ends, however it ends, so every rank
hears of a rank that is gone: rank 0 from its lifeline, the others from rank 0. A node that loses its power is noticed by
keep-alive probes. A rank of another machine reaches the rendezvous store through the gate too, for torch's TCPStore has no
password: it listens on loopback only.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from jobs.log import log_event
from jobs.ranks.interfaces import LOOPBACK

_LOG = logging.getLogger(__name__)
_LIFELINE, _STORE = b"L", b"S"
_HELLO = struct.Struct("!c I")
_NONCE_BYTES, _PROOF_BYTES = 32, 32
_GREET_S = 10.0
_MOST_GREETED = 64
"""Strangers that are being greeted at once; each is let go after `_GREET_S`."""
_CHUNK_BYTES = 1 << 16
_NETWORK = Path("/proc/self/net")
_MAPPED = "0000000000000000FFFF0000"
_LOST = struct.Struct("!I")
_ENDED_WELL = 0xFFFFFFFF
_IDLE_S, _BETWEEN_S, _PROBES = 10, 5, 3
"""A machine that answers no probe for 25 s is gone."""

Lost = Callable[[int], object]
"""Is called with the number of a rank that is gone, in a thread, once at most."""


class GateError(OSError):
    """The gate does not answer, or does not know the secret; the message says where it is."""


class Gate:
    """Rank 0's side: listens at `address`, forwards to the store at `store_port`, holds the lifelines of the other ranks."""

    def __init__(self, address: str, *, secret: bytes, world: int, store_port: int, lost: Lost) -> None:
        self._secret, self._store_port = secret, store_port
        self._lifelines = _Lifelines(lost)
        self._others = world - 1
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, 0), family=family, backlog=max(16, 2 * world))
        self.port = int(self._listener.getsockname()[1])
        self._greeted = threading.Semaphore(_MOST_GREETED)
        _start("gate", self._accept)

    def missing(self) -> list[int]:
        """Returns the ranks whose lifelines are not there yet."""
        return [rank for rank in range(1, self._others + 1) if not self._lifelines.has(rank)]

    def close(self, *, well: bool) -> None:
        """Ends all lifelines. `well`: the job has ended; else the other ranks take rank 0 for lost."""
        self._lifelines.close(well=well)
        _shut(self._listener)

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                self._greeted.acquire()
                _start("gate-greeting", self._greet, connection)

    def _greet(self, connection: socket.socket) -> None:
        try:
            kind, rank = _HELLO.unpack(_admit(connection, self._secret, time.monotonic() + _GREET_S))
            connection.settimeout(None)
            store = socket.create_connection((LOOPBACK, self._store_port)) if kind == _STORE else None
        except (OSError, struct.error) as error:
            log_event(_LOG, "stranger_refused", level=logging.WARNING, error=str(error))
            _shut(connection)
            return
        finally:
            self._greeted.release()
        if store is not None:
            _join(connection, store)
        else:
            self._lifelines.hold(rank, connection)
            self._lifelines.watch(rank, connection)


class Lifeline:
    """Another rank's side: its lifeline, and the way to the store for a process of another machine."""

    def __init__(self, address: str, port: int, *, secret: bytes, rank: int, lost: Lost) -> None:
        self._gate, self._secret, self._rank = (address, port), secret, rank
        connection = self._connect(_LIFELINE)
        self.own_address = str(connection.getsockname()[0])
        self._lifelines = _Lifelines(lost)
        self._lifelines.hold(0, connection)
        self._listener: socket.socket | None = None
        _start("lifeline", self._lifelines.watch, 0, connection)

    def forward(self) -> int:
        """Returns a port of loopback at which this process, and no other user's, reaches the store."""
        self._listener = socket.create_server((LOOPBACK, 0))
        _start("store-forwarder", self._accept, self._listener)
        return int(self._listener.getsockname()[1])

    def close(self, *, well: bool) -> None:
        """Ends the lifeline. `well`: the job has ended for this rank; else the others take it for lost."""
        self._lifelines.close(well=well)
        if self._listener is not None:
            _shut(self._listener)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, peer = listener.accept()
                try:
                    if _uid_of(peer, listener.getsockname()) != os.getuid():
                        raise GateError(f"{peer} is not a process of this user's")
                    _join(connection, self._connect(_STORE))
                except OSError as error:
                    log_event(_LOG, "store_not_reached", level=logging.WARNING, error=str(error))
                    _shut(connection)

    def _connect(self, kind: bytes) -> socket.socket:
        where = "{}:{}".format(*self._gate)
        try:
            with ExitStack() as undo:
                connection = undo.enter_context(socket.create_connection(self._gate, timeout=_GREET_S))
                _present(connection, self._secret, _HELLO.pack(kind, self._rank), time.monotonic() + _GREET_S)
                connection.settimeout(None)
                undo.pop_all()
        except OSError as error:
            raise GateError(f"rank 0's gate at {where}: {error}") from error
        return connection


class _Lifelines:
    """Open lifelines by the number of the rank at their other end."""

    def __init__(self, lost: Lost) -> None:
        self._lost = lost
        self._lock = threading.Lock()
        self._open: dict[int, socket.socket] = {}
        self._seen: set[int] = set()
        self._ended = False

    def hold(self, rank: int, connection: socket.socket) -> None:
        _keep_alive(connection)
        with self._lock:
            self._open[rank] = connection
            self._seen.add(rank)

    def has(self, rank: int) -> bool:
        return rank in self._seen

    def watch(self, rank: int, connection: socket.socket) -> None:
        """Reads a lifeline to its end: the rank there ended well, is gone, or says which one is."""
        said = b""
        with suppress(OSError):
            while len(said) < _LOST.size and (more := connection.recv(_LOST.size - len(said))):
                said += more
        number = _LOST.unpack(said)[0] if len(said) == _LOST.size else rank
        with self._lock:
            self._open.pop(rank, None)
            ends = number != _ENDED_WELL and not self._ended
            self._ended = self._ended or ends
        _shut(connection)
        if ends:
            self._tell_all(number)
            self._lost(number)

    def close(self, *, well: bool) -> None:
        with self._lock:
            self._ended = True
        if well:
            self._tell_all(_ENDED_WELL)
        with self._lock:
            connections = list(self._open.values())
        for connection in connections:
            _shut(connection)

    def _tell_all(self, number: int) -> None:
        with self._lock:
            connections = list(self._open.values())
        for connection in connections:
            with suppress(OSError):
                connection.sendall(_LOST.pack(number))


def _present(connection: socket.socket, secret: bytes, hello: bytes, end: float) -> None:
    """Shows that this side knows the secret, without sending it, and checks that the other side does too."""
    theirs, ours = _exactly(connection, _NONCE_BYTES, end), secrets.token_bytes(_NONCE_BYTES)
    connection.sendall(ours + hello + _proof(secret, b"rank", theirs, ours, hello))
    if not hmac.compare_digest(_exactly(connection, _PROOF_BYTES, end), _proof(secret, b"gate", ours, theirs, hello)):
        raise GateError("another program listens there")


def _admit(connection: socket.socket, secret: bytes, end: float) -> bytes:
    """Returns the hello of a rank that knows the secret. Raises GateError for anybody else."""
    ours = secrets.token_bytes(_NONCE_BYTES)
    connection.sendall(ours)
    theirs, hello = _exactly(connection, _NONCE_BYTES, end), _exactly(connection, _HELLO.size, end)
    if not hmac.compare_digest(_exactly(connection, _PROOF_BYTES, end), _proof(secret, b"rank", ours, theirs, hello)):
        raise GateError(f"{connection.getpeername()} does not know the job's secret")
    connection.sendall(_proof(secret, b"gate", theirs, ours, hello))
    return hello


def _proof(secret: bytes, *parts: bytes) -> bytes:
    return hmac.digest(secret, b"".join(parts), hashlib.sha256)


def _exactly(connection: socket.socket, size: int, end: float) -> bytes:
    data = b""
    while len(data) < size:
        # The whole greeting has one end: a stranger that sends a byte now and then holds nobody up.
        connection.settimeout(max(0.001, end - time.monotonic()))
        more = connection.recv(size - len(data))
        if not more:
            raise GateError("it closed the connection")
        data += more
    return data


def _join(one: socket.socket, other: socket.socket) -> None:
    """Passes on, in two threads, what each side sends."""
    for each in (one, other):
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _start("store-forwarder", _pass_on, one, other)
    _start("store-forwarder", _pass_on, other, one)


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(_CHUNK_BYTES):
            sink.sendall(data)
    for each in (source, sink):
        _shut(each)


def _uid_of(peer: tuple[str, int], own: tuple[str, int]) -> int | None:
    """Returns the user of the process that has connected over loopback; None if the system does not say."""
    pair = [_as_the_kernel_writes(*each) for each in (peer, own)]
    # torch connects by a socket of IPv6, for which the same addresses are written longer.
    for table, before in (("tcp", ""), ("tcp6", _MAPPED)):
        wanted = [before + each for each in pair]
        for line in (_NETWORK / table).read_text().splitlines()[1:]:
            row = line.split()
            if row[1:3] == wanted:
                return int(row[7])
    return None


def _as_the_kernel_writes(host: str, port: int) -> str:
    return f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:{port:04X}"


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", _IDLE_S), ("TCP_KEEPINTVL", _BETWEEN_S), ("TCP_KEEPCNT", _PROBES)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it
    connection.close()


def _start(name: str, work: Callable[..., object], *arguments: object) -> None:
    threading.Thread(target=work, args=arguments, name=name, daemon=True).start()
