"""Reference images and videos as files: fetching, recognising their kind, bounding their sizes, decoding their frames."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import imageio_ffmpeg
import numpy as np
import numpy.typing as npt

from jobs.log import log_event
from jobs.media.image_size import image_size
from jobs.media.reference_access import WEB, ReferenceAccess, UnusableReferenceError, is_public
from jobs.store.retry import RetryPolicy, is_transient, retry, store_errors, within

_LOG = logging.getLogger(__name__)
MAX_BYTES = 256 << 20
"""Of one file. `submit` reads 16 at a time."""
MAX_FRAME_PIXELS = 1 << 26
"""8192 x 8192. A file of some kilobytes may declare frames of gigabytes."""
MAX_VIDEO_PIXELS = 100_000_000_000
"""Width x height x frames: half an hour of 1920 x 1080 at 30 frames per second."""
_UNKNOWN_BYTES = 64 << 20
"""Assumed for the time limit of a file whose size is not known."""
_DEADLINE_S = 600.0
_S3_OPTIONS = {"connect_timeout": 5, "read_timeout": 30, "retries": {"total_max_attempts": 2}}
_IMAGES = (
    # How a file of the kind begins, and what a whole one holds near its end.
    (b"\x89PNG\r\n\x1a\n", b"IEND"),
    (b"\xff\xd8\xff", b"\xff\xd9"),
    (b"BM", b""),
    (b"II*\x00", b""),
    (b"MM\x00*", b""),
)
_STAMP = ("size", "mtime", "created", "ino", "ETag", "etag", "LastModified", "last_modified", "generation", "md5Hash")
_TELLS_CHANGES = ("mtime", "ETag", "etag", "generation", "md5Hash")
_MOST_PIXELS = f"{MAX_FRAME_PIXELS} (8192 x 8192) are decoded"
_FORMATS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,hevc,ivf,ogg,flv,asf,gif,apng,yuv4mpegpipe,"
    "png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe"
)
_INPUT = (
    # Other formats, such as playlists, name files and URLs that ffmpeg would open.
    "-protocol_whitelist", "file,pipe", "-format_whitelist", _FORMATS,
    "-max_pixels", str(MAX_FRAME_PIXELS),
)  # fmt: skip
_NOT_ONE = "it is neither an image (PNG, JPEG, WebP, BMP, TIFF) nor a video that ffmpeg reads"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One fetched reference. `still`: an image, which is one frame."""

    data: bytes
    sha256: str
    still: bool
    num_frames: int


def reference_stamp(url: str, access: ReferenceAccess, retry_policy: RetryPolicy) -> str | None:
    """Returns what changes when the file's content does (size, times, ETag), as its store says it, without reading it.

    None if the store does not say such things (HTTP), does not answer, has no such file, or the file may not be read.
    """
    try:
        protocol = access.protocol(url)
        if protocol in WEB:
            return None
        info = within(retry_policy.operation_s, lambda: _info(url, protocol, access))
    except UnusableReferenceError:
        return None
    except store_errors():
        return None
    if not any(name in info for name in _TELLS_CHANGES):
        return None
    return json.dumps([str(info.get(name)) for name in _STAMP])


def _info(url: str, protocol: str, access: ReferenceAccess) -> dict[str, Any]:
    if protocol != "file":
        fs, path = _store(url, protocol)
        return dict(fs.info(path))
    descriptor = access.open_local(url)
    try:
        told = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return {"size": told.st_size, "mtime": told.st_mtime, "created": told.st_ctime, "ino": told.st_ino}


def fetch_reference(url: str, access: ReferenceAccess, retry_policy: RetryPolicy) -> Reference:
    """Fetches a reference and counts its frames. Raises UnusableReferenceError, also for what `access` does not allow."""
    data = _fetch(url, access, retry_policy)
    still = _is_image(data)
    num_frames = 1 if still else _count_frames(data)
    if still and (size := image_size(data)) is not None:
        _check_pixels(*size, 1)
    return Reference(data=data, sha256=hashlib.sha256(data).hexdigest(), still=still, num_frames=num_frames)


def _store(url: str, protocol: str) -> tuple[Any, str]:
    options: dict[str, Any] = {}
    if protocol == "s3":
        # The user's own configuration says more, such as how buckets are addressed.
        own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        options = {"config_kwargs": {**own, **_S3_OPTIONS}, "use_listings_cache": False}
    try:
        return fsspec.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise UnusableReferenceError(f"its file system cannot be opened ({error})") from error


def _fetch(url: str, access: ReferenceAccess, retry_policy: RetryPolicy) -> bytes:
    protocol = access.protocol(url)
    get = _web if protocol in WEB else _local if protocol == "file" else _object

    try:
        return retry(
            lambda: get(url, access, retry_policy), retry_policy, lambda error, wait_s: _tell_retry(url, error, wait_s)
        )
    except store_errors() as error:
        why = "the file does not exist" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
        raise UnusableReferenceError(f"it cannot be read ({why})", away=is_transient(error)) from error


def _web(url: str, access: ReferenceAccess, retry_policy: RetryPolicy) -> bytes:
    try:
        from jobs.media.web_files import read_web
    except ImportError as error:
        raise UnusableReferenceError(f"reading over HTTP needs {error.name}; install the extra 's3'") from error

    def deadline_s(size_bytes: int | None) -> float:
        return retry_policy.deadline_s(_UNKNOWN_BYTES if size_bytes is None else size_bytes)

    allowed = _any_address if access.private else is_public
    return read_web(url, allowed=allowed, max_bytes=MAX_BYTES, deadline_s=deadline_s)


def _any_address(_address: str) -> bool:
    return True


def _local(url: str, access: ReferenceAccess, retry_policy: RetryPolicy) -> bytes:
    def read() -> bytes:
        with os.fdopen(access.open_local(url), "rb") as file:
            _check_size(os.fstat(file.fileno()).st_size)
            # It may grow while it is read.
            data = file.read(MAX_BYTES + 1)
            _check_size(len(data))
            return data

    return within(retry_policy.deadline_s(MAX_BYTES), read)


def _object(url: str, _access: ReferenceAccess, retry_policy: RetryPolicy) -> bytes:
    fs, path = _store(url, url.partition("://")[0])
    info = within(retry_policy.operation_s, lambda: fs.info(path))
    if info.get("type") == "directory":
        raise UnusableReferenceError("it is a folder; name a file")
    size_bytes = int(info.get("size") or 0)
    _check_size(size_bytes)
    if not size_bytes:
        return b""
    # Asked for by its size: a larger file may have taken its place since.
    return within(retry_policy.deadline_s(size_bytes), lambda: bytes(fs.cat_file(path, start=0, end=size_bytes)))


def _check_size(size_bytes: int) -> None:
    if size_bytes > MAX_BYTES:
        raise UnusableReferenceError(
            f"it has {size_bytes / 1e9:.2f} GB, at most {MAX_BYTES / 1e9:.2f} GB are read; give a smaller file"
        )


def _tell_retry(url: str, error: BaseException, wait_s: float) -> None:
    fields: dict[str, Any] = {"url": url, "wait_s": wait_s, "error": repr(error)}
    log_event(_LOG, "reference_retry", level=logging.WARNING, **fields)


def _is_image(data: bytes) -> bool:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return True
    for beginning, ending in _IMAGES:
        if data.startswith(beginning):
            if ending not in data:
                raise UnusableReferenceError("it is the beginning of an image: the rest of the file is missing")
            return True
    return False


def _check_pixels(width: int, height: int, num_frames: int) -> None:
    if width * height > MAX_FRAME_PIXELS:
        raise UnusableReferenceError(f"its frames are {width} x {height} pixels, at most {_MOST_PIXELS}; scale it down")
    if width * height * num_frames > MAX_VIDEO_PIXELS:
        raise UnusableReferenceError(
            f"it has {num_frames} frames of {width} x {height}, {width * height * num_frames / 1e9:.0f} billion pixels; at "
            f"most {MAX_VIDEO_PIXELS / 1e9:.0f} billion are decoded; cut or scale it"
        )


def _count_frames(data: bytes) -> int:
    """Counts a video's frames without decoding them, and checks its size."""
    with _as_file(data) as path:
        copy = ["-map", "0:v:0", "-c", "copy", "-f", "null", "-progress", "pipe:1", "-"]
        ended = _run([*_INPUT, "-i", str(path), *copy])
    counts = re.findall(rb"^frame=\s*(\d+)", ended.stdout, re.MULTILINE)
    if not counts or int(counts[-1]) == 0:
        raise UnusableReferenceError(_NOT_ONE)
    sizes = re.findall(rb"Stream #0:\d+.*: Video: .*?[ ,](\d{1,6})x(\d{1,6})[ ,\[\n]", ended.stderr)
    num_frames = int(counts[-1])
    if sizes:
        _check_pixels(int(sizes[0][0]), int(sizes[0][1]), num_frames)
    return num_frames


def decode_frames(reference: Reference, span: range) -> Iterator[npt.NDArray[np.uint8]]:
    """Yields the frames of a span, uint8 RGB [H, W, 3] each, of the file's own size. Raises UnusableReferenceError."""
    choose = ["-vf", f"select=between(n\\,{span.start}\\,{span.stop - 1})", "-frames:v", str(len(span))]
    convert = ["-fps_mode", "passthrough", "-sws_flags", "accurate_rnd+full_chroma_int+bitexact", "-pix_fmt", "rgb24"]
    with _as_file(reference.data) as path:
        # PPM has every frame's size. The file's own size does not say how its frames are turned.
        command = [
            *_INPUT,
            "-i",
            str(path),
            "-map",
            "0:v:0",
            *choose,
            *convert,
            "-c:v",
            "ppm",
            "-f",
            "image2pipe",
            "pipe:1",
        ]
        found = 0
        for frame in _frames_of(command):
            found += 1
            yield frame
    if found != len(span):
        raise UnusableReferenceError(f"its frames {span.start} to {span.stop - 1} are wanted, {found} of them decode")


def _frames_of(arguments: list[str]) -> Iterator[npt.NDArray[np.uint8]]:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", *arguments]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        assert process.stdout is not None, "stdout is a pipe"
        try:
            while (magic := process.stdout.readline()) == b"P6\n":
                width, height = map(int, process.stdout.readline().split())
                process.stdout.readline()  # the largest value, 255
                data = process.stdout.read(3 * width * height)
                if len(data) == 3 * width * height:
                    yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
            assert not magic, f"ffmpeg wrote {magic!r} where a frame begins"
        finally:
            process.stdout.close()
            process.wait(timeout=_DEADLINE_S)
        if process.returncode:
            errors.seek(0)
            raise UnusableReferenceError(f"it does not decode: {errors.read().decode(errors='replace').strip()[-500:]}")


def _run(arguments: list[str]) -> subprocess.CompletedProcess[bytes]:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "level+info", "-nostats", *arguments]
    try:
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_DEADLINE_S
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise UnusableReferenceError(f"ffmpeg did not end within {_DEADLINE_S:.0f} s") from error
    if found := re.search(rb"Picture size (\d+)x(\d+) ", ended.stderr):
        _check_pixels(int(found[1]), int(found[2]), 1)
    if ended.returncode:
        errors = [
            line for line in ended.stderr.decode(errors="replace").splitlines() if re.search(r"\[(error|fatal)\]", line)
        ]
        why = errors[-1].strip()[-300:] if errors else f"ffmpeg ended with {ended.returncode}"
        raise UnusableReferenceError(f"{_NOT_ONE} ({why})")
    return ended


@contextmanager
def _as_file(data: bytes) -> Iterator[Path]:
    """Yields a file with the bytes, for ffmpeg, which must go back and forth in it."""
    with tempfile.NamedTemporaryFile(prefix="pab-reference-") as file:
        file.write(data)
        file.flush()
        yield Path(file.name)
