"""The proxy makes the troubles that it says it makes, and none when it is told nothing."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.faults.proxy import Proxy, open_proxy


class Answers(BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[::-1])

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with open_proxy(server.server_port) as proxy:
        yield proxy
    server.shutdown()
    server.server_close()


def ask(proxy: Proxy, data: bytes = b"abc") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    try:
        connection.request("PUT", "/", body=data)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_without_trouble_bytes_pass_both_ways(proxy: Proxy) -> None:
    assert ask(proxy) == (200, b"cba")
    assert ask(proxy, b"xy" * 200_000) == (200, b"yx" * 200_000)
    assert proxy.hits == 0


@pytest.mark.parametrize(("mode", "status", "code"), [
    ("500", 500, b"InternalError"), ("503", 503, b"SlowDown"), ("403", 403, b"AccessDenied"),
])  # fmt: skip
def test_an_error_is_answered_in_the_words_of_s3(proxy: Proxy, mode: str, status: int, code: bytes) -> None:
    proxy.make_trouble(mode, for_s=60)
    told, body = ask(proxy)
    assert (told, code in body, proxy.hits > 0) == (status, True, True)


def test_connections_are_reset(proxy: Proxy) -> None:
    proxy.make_trouble("reset", for_s=60)
    with pytest.raises(ConnectionResetError):
        ask(proxy)
    assert proxy.hits == 1


def test_trouble_ends_by_itself_and_late_answers_are_right(proxy: Proxy) -> None:
    proxy.make_trouble("delay", for_s=0.5)
    began = time.monotonic()
    assert ask(proxy) == (200, b"cba")
    assert time.monotonic() - began >= 1.0
    before = proxy.hits
    assert ask(proxy) == (200, b"cba")
    assert proxy.hits == before
