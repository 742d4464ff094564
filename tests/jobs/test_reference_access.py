"""What references may name: a manifest, and a shard, may be written by somebody else. Real files, real sockets."""

from __future__ import annotations

import gzip
import io
import os
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from jobs.media.image_size import image_size
from jobs.media.picture import png
from jobs.media.reference_access import ReferenceAccess, UnusableReferenceError, is_public
from jobs.media.reference_files import Reference, decode_frames, fetch_reference, reference_stamp
from jobs.media.web_files import read_web
from jobs.store.retry import RetryPolicy

SHORT = RetryPolicy(total_s=0.2, operation_s=5, first_wait_s=0.05)
IMAGE = png(np.zeros((8, 8, 3), np.uint8))
Answer = Callable[[BaseHTTPRequestHandler], None]


def refusal(url: str, access: ReferenceAccess) -> str:
    with pytest.raises(UnusableReferenceError) as caught:
        fetch_reference(url, access, SHORT)
    assert not caught.value.away
    return str(caught.value)


@contextmanager
def web_server(answer: Answer, host: str = "127.0.0.1") -> Iterator[str]:
    """Serves one answer to every GET; yields the URL of the server."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            try:
                answer(self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer((host, 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def sends(data: bytes, **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        for name, value in {"Content_Length": str(len(data)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(data)

    return answer


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("reference://x.png::file:///tmp/f.json", "chained URLs"),
        ("simplecache::s3://bucket/a.png", "chained URLs"),
        ("zip://a.png::/tmp/a.zip", "chained URLs"),
        ("memory://a.png", "the protocol 'memory' is not allowed; allowed are http, https, s3"),
        ("reference://a.png", "'reference' is not allowed"),
        ("github://owner:repo@main/a.png", "'github' is not allowed"),
        ("ftp://host/a.png", "'ftp' is not allowed"),
        ("sftp://host/a.png", "'sftp' is not allowed"),
        ("HTTP://host/a.png", "'HTTP' is not allowed"),
        ("s3://key:secret@bucket/a.png", "may not hold credentials"),
        ("s3://arn:aws:s3:us-east-1:123456789012:accesspoint/mine/a.png", "no plain name of a bucket"),
        ("az://box@mine.example.org/a.png", "no container"),
        ("http:///a.png", "names no host"),
        ("http://host\\@127.0.0.1/a.png", "credentials|names no host"),
        ("//server/share/a.png", "a path of another machine"),
        ("/folder/\\\\server\\share\\a.png", "a path of another machine"),
        ("file://server/share/a.png", "needs a whole path"),
        ("/tmp/a.png\x00.txt", r"control character '\\x00'"),
        ("https://host/\x1b[31mred.png", r"control character '\\x1b'"),
        ("/" + "a" * 5000, "5001 characters"),
    ],
)
def test_no_other_protocol_chain_or_endpoint_can_be_named(url: str, told: str) -> None:
    with pytest.raises(UnusableReferenceError, match=told):
        ReferenceAccess(roots=("/",), private=True).protocol(url)
    assert refusal(url, ReferenceAccess(roots=("/",), private=True))


@pytest.mark.parametrize(
    "url",
    ["s3://bucket/a b;c.png", "gs://bucket/a.png", "az://box/a.png", "abfss://box@name.dfs.core.windows.net/a.png",
     "https://host/a.png?x=1", "file:///a.png", "/a.png"],
)  # fmt: skip
def test_what_is_allowed_is_allowed(url: str) -> None:
    protocol = url.partition("://")[0] if "://" in url else "file"
    assert ReferenceAccess().protocol(url) == protocol


def test_local_files_are_read_below_the_named_folders_alone(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "in-not"
    for folder in (inside / "sub", outside):
        folder.mkdir(parents=True)
    for file in (inside / "a.png", outside / "b.png"):
        file.write_bytes(IMAGE)
    (inside / "link.png").symlink_to(outside / "b.png")
    (inside / "folder").symlink_to(outside)
    (inside / "near.png").symlink_to(inside / "a.png")
    (inside / "devices").symlink_to("/dev")
    access = ReferenceAccess(roots=(str(inside),))
    for name in (inside / "a.png", inside / "near.png", inside / "sub" / ".." / "a.png", f"file://{inside}/a.png"):
        assert fetch_reference(str(name), access, SHORT).still
        assert reference_stamp(str(name), access, SHORT) is not None
    for name in (
        outside / "b.png", inside / "link.png", inside / "folder" / "b.png", inside / ".." / "in-not" / "b.png",
        f"file://{outside}/b.png", inside / "devices" / "zero", "/proc/self/environ",
    ):  # fmt: skip
        told = refusal(str(name), access)
        assert reference_stamp(str(name), access, SHORT) is None
        assert f"outside of the folders that references may be read from ({inside})" in told
        assert "--reference-root" in told
    assert fetch_reference(str(inside / "link.png"), ReferenceAccess(roots=(str(inside), str(outside))), SHORT).still
    assert "none, as the manifest is not a local file" in refusal(str(inside / "a.png"), ReferenceAccess())


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    began = time.monotonic()
    assert "no regular file" in refusal(str(tmp_path / "pipe.png"), ReferenceAccess(roots=(str(tmp_path),)))
    assert time.monotonic() - began < 2


def test_a_folder_that_becomes_a_link_while_files_are_opened_leads_nowhere(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder, data in ((inside / "real", IMAGE), (outside, IMAGE + b"secret")):
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(data)
    swapped = inside / "swapped"
    swapped.symlink_to(inside / "real")
    ends = threading.Event()

    def swap() -> None:
        while not ends.is_set():
            for target in (outside, inside / "real"):
                (inside / "new").symlink_to(target)
                (inside / "new").replace(swapped)

    thread = threading.Thread(target=swap)
    thread.start()
    access, read = ReferenceAccess(roots=(str(inside),)), []
    try:
        for _ in range(300):
            try:
                with os.fdopen(access.open_local(str(swapped / "a.png")), "rb") as file:
                    read.append(file.read())
            except (UnusableReferenceError, OSError):
                continue
    finally:
        ends.set()
        thread.join()
    assert set(read) <= {IMAGE}


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700:4700::1111", True), ("64:ff9b::808:808", True),
        ("127.0.0.1", False), ("0.0.0.0", False), ("10.1.2.3", False), ("172.16.0.1", False), ("192.168.1.1", False),
        ("169.254.169.254", False), ("100.64.0.1", False), ("224.0.0.1", False), ("255.255.255.255", False),
        ("::1", False), ("::", False), ("fe80::1%eth0", False), ("fd00:ec2::254", False), ("ff02::1", False),
        ("::ffff:127.0.0.1", False), ("::ffff:169.254.169.254", False), ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False), ("2002:a9fe:a9fe::1", False),
    ],
)  # fmt: skip
def test_addresses_inside_a_site_are_told_from_public_ones(address: str, public: bool) -> None:
    assert is_public(address) == public


def test_no_address_of_this_machine_or_site_is_asked_unless_the_user_says_so() -> None:
    asked: list[str] = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        sends(IMAGE)(request)

    with web_server(answer) as url:
        port = url.rpartition(":")[2]
        for host in ("127.0.0.1", "localhost", "127.0.0.2", "0.0.0.0"):
            told = refusal(f"http://{host}:{port}/a.png", ReferenceAccess())
            assert "which is no public address" in told
            assert "--allow-private-references" in told
        for host in ("2130706433", "127.1", "0x7f000001", "017700000001"):  # more ways to write 127.0.0.1
            with pytest.raises(UnusableReferenceError):
                fetch_reference(f"http://{host}:{port}/a.png", ReferenceAccess(), SHORT)
        assert asked == []
        assert fetch_reference(f"{url}/a.png", ReferenceAccess(private=True), SHORT).still
        assert asked == ["/a.png"]


def test_a_redirect_is_followed_only_to_addresses_that_are_allowed() -> None:
    asked: list[str] = []

    def secret(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        sends(IMAGE)(request)

    with web_server(secret, "127.0.0.2") as inner:
        targets = {"/ip": f"{inner}/a.png", "/file": "file:///etc/passwd", "/loop": "/loop"}

        def redirects(request: BaseHTTPRequestHandler) -> None:
            request.send_response(302)
            request.send_header("Location", targets[request.path])
            request.send_header("Content-Length", "0")
            request.end_headers()

        with web_server(redirects) as outer:
            for path, told in (("/ip", "leads to 127.0.0.2"), ("/file", "no URL"), ("/loop", "no URL")):
                with pytest.raises(UnusableReferenceError, match=told):
                    read(f"{outer}{path}", allowed=lambda address: address == "127.0.0.1")
            assert asked == []
            assert read(f"{outer}/ip") == IMAGE


def read(
    url: str, *, allowed: Callable[[str], bool] = lambda _: True, max_bytes: int = 1 << 20, deadline_s: float = 5.0
) -> bytes:
    return read_web(url, allowed=allowed, max_bytes=max_bytes, deadline_s=lambda _: deadline_s)


def endless(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(bytes(1 << 16))


def test_an_answer_is_bounded_as_its_bytes_come() -> None:
    bomb = gzip.compress(bytes(64 << 20))
    packed = gzip.compress(IMAGE)
    cases = (
        (endless, "more came, at most 0.00 GB are read"),
        (sends(bytes(2 << 20)), "at most"),
        (sends(b"", Content_Length=str(1 << 40)), "it has 1099.5 GB"),
        (sends(bomb, Content_Encoding="gzip"), "more came"),
        (sends(IMAGE, Content_Encoding="br"), "packs it as 'br'"),
        (sends(packed[:9] + b"damaged", Content_Encoding="gzip"), "does not unpack"),
    )
    for answer, told in cases:
        with web_server(answer) as url, pytest.raises(UnusableReferenceError, match=told):
            read(f"{url}/a.png")
    with web_server(sends(packed, Content_Encoding="gzip")) as url:
        assert read(f"{url}/a.png") == IMAGE


def test_an_answer_that_trickles_for_ever_ends_at_the_deadline() -> None:
    ended = threading.Event()

    def trickle(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        try:
            for _ in range(200):
                request.wfile.write(b"x")
                time.sleep(0.02)
        finally:
            ended.set()

    began = time.monotonic()
    with web_server(trickle) as url:
        with pytest.raises(OSError, match="did not come within"):
            read(f"{url}/a.png", deadline_s=0.3)
        assert time.monotonic() - began < 2
        assert ended.wait(2), "the connection is closed, not abandoned"


def test_a_refusal_of_the_server_is_final_and_says_its_code() -> None:
    def forbids(request: BaseHTTPRequestHandler) -> None:
        request.send_error(403)

    with web_server(forbids) as url:
        assert "its server answers 403 Forbidden" in refusal(f"{url}/a.png", ReferenceAccess(private=True))


def png_of(width: int, height: int) -> bytes:
    """A PNG that declares a size; what it holds fills one row of a small picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def made(kind: str, width: int = 40) -> bytes:
    """A picture of one line as Pillow writes it."""
    stream = io.BytesIO()
    Image.new("1" if width > 1000 else "RGB", (width, 1)).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "tiff", "webp"])
def test_the_size_that_a_picture_declares_is_read_without_decoding_it(kind: str) -> None:
    assert image_size(made(kind)) == (40, 1)
    assert image_size(made(kind)[:15]) is None
    if kind == "webp":
        for options in ({"lossless": True}, {"exif": b"Exif"}):
            stream = io.BytesIO()
            Image.new("RGB", (300, 200)).save(stream, kind, **options)
            assert image_size(stream.getvalue()) == (300, 200)


def test_a_picture_that_declares_gigabytes_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    access = ReferenceAccess(roots=(str(tmp_path),))
    for data in (png_of(50_000, 50_000), png_of(8193, 8192), *(made(kind, 70_000_000) for kind in ("bmp", "tiff"))):
        (tmp_path / "a.png").write_bytes(data)
        assert "its frames are" in refusal(str(tmp_path / "a.png"), access)
    # The decoder has the same bound, for files whose size it alone can read.
    large = io.BytesIO()
    Image.new("1", (8200, 8200)).save(large, "png")
    with pytest.raises(UnusableReferenceError, match=r"does not decode|0 of them decode"):
        list(decode_frames(Reference(data=large.getvalue(), sha256="", still=True, num_frames=1), range(1)))


def test_a_video_that_declares_gigabytes_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    film = tmp_path / "film.mkv"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "image2pipe", "-c:v", "png", "-i", "pipe:0"]
    # Packed as it is, never decoded.
    subprocess.run(
        [*command, "-c", "copy", "-y", str(film)], input=png_of(16_000, 16_000) * 2, check=True, capture_output=True
    )
    assert "its frames are 16000 x 16000" in refusal(str(film), ReferenceAccess(roots=(str(tmp_path),)))


def test_a_playlist_cannot_make_the_decoder_open_other_files(tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        sends(b"")(request)

    with web_server(answer) as url:
        for name, text in (
            ("a.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}/a.ts\n#EXT-X-ENDLIST\n"),
            ("b.txt", f"ffconcat version 1.0\nfile '{url}/a.mp4'\n"),
        ):
            (tmp_path / name).write_text(text)
            assert "neither an image" in refusal(str(tmp_path / name), ReferenceAccess(roots=(str(tmp_path),)))
        assert asked == []
