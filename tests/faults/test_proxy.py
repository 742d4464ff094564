"""The proxy makes the troubles that it says it makes, and none when it is told nothing."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.faults.old_listing import Entry, OldListing
from tests.faults.proxy import Proxy, open_proxy

SECRET = "testsecretkey0123456789"


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.came.append((self.path, dict(self.headers), data))
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[::-1])

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.came = []
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def proxy(server: ThreadingHTTPServer) -> Iterator[Proxy]:
    with open_proxy(server.server_port, secret_key=SECRET) as proxy:
        yield proxy


def came(server: ThreadingHTTPServer) -> list[tuple[str, dict[str, str], bytes]]:
    return server.came


def ask(
    proxy: Proxy, data: bytes = b"abc", path: str = "/", headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    try:
        connection.request("PUT", path, body=data, headers=headers or {})
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


def test_trouble_waits_for_its_first_request(proxy: Proxy) -> None:
    proxy.make_trouble("503", for_s=0.05)
    time.sleep(0.1)
    assert (ask(proxy)[0], proxy.hits) == (503, 1)
    time.sleep(0.1)
    assert (ask(proxy)[0], proxy.is_calm) == (200, True)
    proxy.make_trouble("503", for_s=60)
    proxy.end_trouble()
    assert ask(proxy)[0] == 200


def test_trouble_ends_by_itself_and_late_answers_are_right(proxy: Proxy) -> None:
    proxy.make_trouble("delay", for_s=0.5)
    began = time.monotonic()
    assert ask(proxy) == (200, b"cba")
    assert time.monotonic() - began >= 1.0
    before = proxy.hits
    assert ask(proxy) == (200, b"cba")
    assert proxy.hits == before


def test_the_sender_of_a_late_upload_is_cut_off_and_what_it_sent_comes_later(
    proxy: Proxy, server: ThreadingHTTPServer
) -> None:
    proxy.make_uploads_late(1, by_s=0.4, wanted=lambda path: path.startswith("/b/run1/"), for_s=60)
    assert ask(proxy, b"other", "/b/run2/x")[0] == 200
    with pytest.raises(ConnectionResetError):
        ask(proxy, b"first", "/b/run1/x")
    assert (ask(proxy, b"second", "/b/run1/x")[0], proxy.is_calm) == (200, False)
    end = time.monotonic() + 10
    while not proxy.is_calm and time.monotonic() < end:
        time.sleep(0.02)
    assert [data for _, _, data in came(server)] == [b"other", b"second", b"first"]
    assert proxy.late == ["/b/run1/x"]


def signed(headers: dict[str, str], port: int) -> dict[str, str]:
    request = AWSRequest(
        method="PUT", url=f"http://127.0.0.1:{port}/b/a%20b%2Bc?y=2&x=1%2F3", data=b"abc", headers=headers
    )
    S3SigV4Auth(Credentials("KEY", SECRET), "s3", "us-east-1").add_auth(request)
    return dict(request.headers.items())


def test_a_store_without_conditions_gets_requests_that_are_signed_without_them(
    proxy: Proxy, server: ThreadingHTTPServer
) -> None:
    proxy.drops_conditions = True
    plain = signed({}, proxy.port)
    conditional = signed({"If-None-Match": "*", "X-Amz-Date": plain["X-Amz-Date"]}, proxy.port)
    assert plain["Authorization"] != conditional["Authorization"]
    assert ask(proxy, b"abc", "/b/a%20b%2Bc?y=2&x=1%2F3", conditional)[0] == 200
    _, headers, _ = came(server)[0]
    assert ("If-None-Match" in headers, proxy.dropped) == (False, 1)
    if headers["X-Amz-Date"] == plain["X-Amz-Date"]:  # else a second has passed between the two
        assert headers["Authorization"].replace(", ", ",") == plain["Authorization"].replace(", ", ",")


def test_a_client_that_asks_before_it_sends_its_body_is_told_to_go_on(
    proxy: Proxy, server: ThreadingHTTPServer
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    for body in (b"one", b"two"):  # on one connection
        connection.putrequest("PUT", "/b/x")
        connection.putheader("Expect", "100-continue")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        connection.send(body)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, body[::-1])
    connection.close()
    assert ["Expect" in headers for _, headers, _ in came(server)] == [False, False]


def listed(proxy: Proxy, query: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    connection.request("GET", f"/b?list-type=2&{query}")
    body = connection.getresponse().read()
    connection.close()
    return body


def test_stale_listings_are_those_of_the_moment_and_end_by_themselves(proxy: Proxy) -> None:
    entries = (
        Entry(key=f"run/{name}", size=7, etag='"e"', modified="2026-01-01T00:00:00.000Z") for name in ("a b", "c/d")
    )
    proxy.make_listings_stale(OldListing(tuple(entries)).answer, for_s=60, share=1.0)
    assert b"<Key>run/a b</Key>" in listed(proxy, "prefix=run/&delimiter=/")
    assert b"<Key>run/a%20b</Key>" in listed(proxy, "prefix=run/&delimiter=/&encoding-type=url")
    assert b"<Prefix>run/c/</Prefix>" in listed(proxy, "prefix=run/&delimiter=/")
    assert b"<Contents>" not in listed(proxy, "prefix=run/c/&start-after=run/c/d")
    assert (b"<IsTruncated>true" in listed(proxy, "prefix=run/&max-keys=1"), proxy.stale_hits) == (True, 5)
    assert ask(proxy, path="/b/x")[0] == 200  # no listing
    proxy.make_listings_stale(lambda _: b"", for_s=0.0, share=1.0)
    listed(proxy, "prefix=run/")
    assert (proxy.is_calm, proxy.stale_hits) == (True, 5)
