"""One HTTP request as it came over a connection: its head, its whole body, and how it is signed (AWS Signature Version 4)."""

from __future__ import annotations

import hashlib
import hmac
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, quote, unquote_plus

_CHUNK = 1 << 16
_HEAD_BYTES = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`headers` in their order, as they were written. `body` as it came, chunked or not."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def path(self) -> str:
        """What it asks for, unquoted: `/bucket/key`."""
        return unquote_plus(self.target.partition("?")[0].replace("+", "%2B"))

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self.target.partition("?")[2], keep_blank_values=True))

    @property
    def is_listing(self) -> bool:
        """Whether it asks which objects a bucket has (`list-type=2`, the one that the program uses)."""
        return self.method == "GET" and self.path.strip("/").count("/") == 0 and self.query.get("list-type") == "2"

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    def without(self, name: str) -> Request:
        return replace(self, headers=tuple(header for header in self.headers if header[0].lower() != name))

    def to_bytes(self) -> bytes:
        lines = [f"{self.method} {self.target} HTTP/1.1", *(f"{name}: {value}" for name, value in self.headers)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body


def read_request(connection: socket.socket) -> Request | None:
    """Reads the next request whole; None when the other side has closed. Raises OSError, ValueError for what is none.

    A client that waits with its body until it is asked for it (`Expect: 100-continue`) is asked; the header is taken out.
    """
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(_CHUNK)
        if not part or len(data) > _HEAD_BYTES:
            return None
        data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
    request = Request(method=method, target=target, headers=headers, body=b"")
    if request.header("expect"):
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        request = request.without("expect")
    if "chunked" in request.header("transfer-encoding").lower():
        return replace(request, body=_read_chunks(connection, rest))
    return replace(request, body=_read_exactly(connection, rest, int(request.header("content-length") or 0)))


def _read_exactly(connection: socket.socket, data: bytes, size: int) -> bytes:
    parts, missing = [data], size - len(data)
    while missing > 0:
        part = connection.recv(min(_CHUNK, missing))
        if not part:
            raise ConnectionResetError("the body was cut off")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _read_chunks(connection: socket.socket, data: bytes) -> bytes:
    while not re.search(rb"(^|\r\n)0\r\n(.*\r\n)*\r\n$", data):
        part = connection.recv(_CHUNK)
        if not part:
            raise ConnectionResetError("the body was cut off")
        data += part
    return data


def sign_again(request: Request, secret_key: str, *, leave_out: Sequence[str] = ()) -> Request:
    """Takes headers out of a request and signs what is left, as its sender would have. Raises ValueError if it is not signed.

    A store checks the signature over every header that the request names as signed.
    """
    left = request
    for name in leave_out:
        left = left.without(name)
    said = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=([^,]+), ?SignedHeaders=([^,]+), ?Signature=[0-9a-f]+",
        left.header("authorization"),
    )
    if said is None:
        raise ValueError(f"not signed: {left.header('authorization')!r}")
    credential, names = said[1], [name for name in said[2].split(";") if name not in leave_out]
    signature = _signature(left, secret_key, scope=credential.partition("/")[2], names=names)
    value = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={';'.join(names)}, Signature={signature}"
    kept = left.without("authorization")
    return replace(kept, headers=(*kept.headers, ("Authorization", value)))


def _signature(request: Request, secret_key: str, *, scope: str, names: Sequence[str]) -> str:
    path, _, query = request.target.partition("?")
    pairs = sorted(
        (quote(key, safe="-_.~"), quote(value, safe="-_.~")) for key, value in parse_qsl(query, keep_blank_values=True)
    )
    canonical = "\n".join(
        [
            request.method,
            path,
            "&".join(f"{key}={value}" for key, value in pairs),
            *(f"{name}:{' '.join(request.header(name).split())}" for name in names),
            "",
            ";".join(names),
            request.header("x-amz-content-sha256"),
        ]
    )
    day, region, service, end = scope.split("/")
    key = f"AWS4{secret_key}".encode()
    for part in (day, region, service, end):
        key = hmac.digest(key, part.encode(), "sha256")
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", request.header("x-amz-date"), scope, digest])
    return hmac.digest(key, text.encode(), "sha256").hex()
