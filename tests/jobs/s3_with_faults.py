"""A small S3 server in memory, on loopback, with the faults that a real server cannot be asked for."""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape

import pytest
from aiohttp import web


@dataclass
class Fault:
    """What happens to the next `times` requests of a method whose key matches: an answer instead of the deed.

    `late_s`: the answer is 500, and the object is stored so much later, whatever became of its sender.
    """

    method: str
    key: str
    times: int = 1
    status: int = 500
    code: str = "InternalError"
    late_s: float | None = None


@dataclass
class FaultyS3:
    """One bucket, `runs`. `conditions`: "kept", "ignored" (a PUT with If-None-Match overwrites) or "refused" (501).

    `late_listing_s`: listings show the bucket as it was so many seconds ago.
    """

    conditions: str = "kept"
    late_listing_s: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    stored_at: dict[str, float] = field(default_factory=dict)
    endpoint: str = ""

    def put(self, key: str, data: bytes) -> None:
        """Stores an object."""
        self.objects[key] = data
        self.stored_at.setdefault(key, time.monotonic())

    async def answer(self, request: web.Request) -> web.Response:
        """Answers one request."""
        body = await request.read()
        key = unquote(request.path).removeprefix("/runs").removeprefix("/")
        fault = next((f for f in self.faults if f.times and f.method == request.method and re.search(f.key, key)), None)
        if fault is not None:
            fault.times -= 1
            if fault.late_s is not None:
                asyncio.get_running_loop().call_later(fault.late_s, self.put, key, _decoded(request, body))
            return _error(fault.status, fault.code)
        if request.method == "PUT":
            return self._put(request, key, _decoded(request, body))
        if request.method == "DELETE":
            self.objects.pop(key, None)
            self.stored_at.pop(key, None)
            return web.Response(status=204)
        if not key:
            return self._list(request)
        if key not in self.objects:
            return _error(404, "NoSuchKey")
        data = self.objects[key]
        headers = {"ETag": f'"{hashlib.md5(data).hexdigest()}"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        if request.method == "HEAD":
            return web.Response(headers={**headers, "Content-Length": str(len(data))})
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", "")):
            first, last = int(wanted[1]), int(wanted[2] or len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
            return web.Response(status=206, body=data[first : last + 1], headers=headers)
        return web.Response(body=data, headers=headers)

    def _put(self, request: web.Request, key: str, data: bytes) -> web.Response:
        if "If-None-Match" in request.headers:
            if self.conditions == "refused":
                return _error(501, "NotImplemented")
            if self.conditions == "kept" and key in self.objects:
                return _error(412, "PreconditionFailed")
        self.put(key, data)
        return web.Response(headers={"ETag": f'"{hashlib.md5(data).hexdigest()}"'})

    def _list(self, request: web.Request) -> web.Response:
        prefix, after = request.query.get("prefix", ""), request.query.get("start-after", "")
        seen = [key for key, at in self.stored_at.items() if at <= time.monotonic() - self.late_listing_s]
        keys = sorted(key for key in seen if key.startswith(prefix) and key > after)
        objects = "".join(
            f"<Contents><Key>{quote(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<Size>{len(self.objects[key])}</Size></Contents>"
            for key in keys
        )
        return web.Response(
            content_type="application/xml",
            text="<ListBucketResult><Name>runs</Name><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>"
            f"<KeyCount>{len(keys)}</KeyCount>{objects}</ListBucketResult>",
        )


def _error(status: int, code: str) -> web.Response:
    text = f"<Error><Code>{escape(code)}</Code><Message>made by the test</Message></Error>"
    return web.Response(status=status, content_type="application/xml", text=text)


def _decoded(request: web.Request, body: bytes) -> bytes:
    """Returns the bytes of an upload, which clients may send in signed pieces."""
    if "aws-chunked" not in request.headers.get("Content-Encoding", ""):
        return body
    data, at = b"", 0
    while size := int(body[at : (end := body.index(b"\r\n", at))].split(b";")[0], 16):
        data += body[end + 2 : end + 2 + size]
        at = end + 4 + size
    return data


@pytest.fixture
def faulty_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """Serves from a thread until the end of the test, whose clients use it."""
    server, loop, ready = FaultyS3(), asyncio.new_event_loop(), threading.Event()

    async def start() -> web.AppRunner:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{tail:.*}", server.answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.endpoint = "http://127.0.0.1:{1}".format(*runner.addresses[0])
        return runner

    def serve() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ready.wait(10)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    yield server
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
