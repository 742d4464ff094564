"""Reference images and videos as files: fetching them from any fsspec URL, recognising their kind, decoding their frames."""

from __future__ import annotations

import hashlib
import json
import logging
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
from fsspec.utils import get_protocol

from jobs.log import log_event
from jobs.store.retry import RetryPolicy, is_transient, retry, store_errors, within

_LOG = logging.getLogger(__name__)
MAX_BYTES = 1 << 30
_UNKNOWN_BYTES = 64 << 20
"""Assumed for the time limit of a file whose size is not known."""
_DEADLINE_S = 600.0
_S3_OPTIONS = {
    "config_kwargs": {"connect_timeout": 5, "read_timeout": 30, "retries": {"total_max_attempts": 2}},
    "use_listings_cache": False,
}
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
_NOT_ONE = "it is neither an image (PNG, JPEG, WebP, BMP, TIFF) nor a video that ffmpeg reads"


class UnusableReferenceError(Exception):
    """A reference image or video cannot be used; the message says why. `away`: its store gave no answer."""

    def __init__(self, message: str, *, away: bool = False) -> None:
        super().__init__(message)
        self.away = away


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One fetched reference. `still`: an image, which is one frame."""

    data: bytes
    sha256: str
    still: bool
    num_frames: int


def reference_stamp(url: str, retry_policy: RetryPolicy) -> str | None:
    """Returns what changes when the file's content does (size, times, ETag), as its store says it, without reading it.

    None if the store does not say such things (HTTP), does not answer, or has no such file.
    """
    if get_protocol(url) in ("http", "https"):
        return None
    try:
        fs, path = _open(url)
        info = within(retry_policy.operation_s, lambda: fs.info(path))
    except UnusableReferenceError:
        return None
    except store_errors():
        return None
    if not any(name in info for name in _TELLS_CHANGES):
        return None
    return json.dumps([str(info.get(name)) for name in _STAMP])


def fetch_reference(url: str, retry_policy: RetryPolicy) -> Reference:
    """Fetches a reference and counts its frames. Raises UnusableReferenceError."""
    data = _fetch(url, retry_policy)
    still = _is_image(data)
    num_frames = 1 if still else _count_frames(data)
    return Reference(data=data, sha256=hashlib.sha256(data).hexdigest(), still=still, num_frames=num_frames)


def _open(url: str) -> tuple[Any, str]:
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise UnusableReferenceError("a URL may not hold credentials; set them in the environment")
    options = _S3_OPTIONS if get_protocol(url) in ("s3", "s3a") else {}
    try:
        return fsspec.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise UnusableReferenceError(f"its file system cannot be opened ({error})") from error


def _fetch(url: str, retry_policy: RetryPolicy) -> bytes:
    fs, path = _open(url)
    web = get_protocol(url) in ("http", "https")

    def get() -> bytes:
        # Over HTTP fsspec reports every error of `info` as a missing file.
        info = {} if web else within(retry_policy.operation_s, lambda: fs.info(path))
        if info.get("type") == "directory":
            raise IsADirectoryError("it is a folder")
        size_bytes = info.get("size") or 0
        if size_bytes > MAX_BYTES:
            raise UnusableReferenceError(f"it has {size_bytes / 1e9:.1f} GB, at most {MAX_BYTES / 1e9:.1f} GB are read")
        return within(retry_policy.deadline_s(size_bytes or _UNKNOWN_BYTES), lambda: bytes(fs.cat_file(path)))

    try:
        return retry(get, retry_policy, lambda error, wait_s: _tell_retry(url, error, wait_s))
    except store_errors() as error:
        why = "the file does not exist" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
        raise UnusableReferenceError(f"it cannot be read ({why})", away=is_transient(error)) from error


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


def _count_frames(data: bytes) -> int:
    """Counts a video's frames without decoding them."""
    with _as_file(data) as path:
        told = _run(["-i", str(path), "-map", "0:v:0", "-c", "copy", "-f", "null", "-progress", "pipe:1", "-"])
    counts = re.findall(rb"^frame=\s*(\d+)", told, re.MULTILINE)
    if not counts or int(counts[-1]) == 0:
        raise UnusableReferenceError(_NOT_ONE)
    return int(counts[-1])


def decode_frames(reference: Reference, span: range) -> Iterator[npt.NDArray[np.uint8]]:
    """Yields the frames of a span, uint8 RGB [H, W, 3] each, of the file's own size. Raises UnusableReferenceError."""
    choose = ["-vf", f"select=between(n\\,{span.start}\\,{span.stop - 1})", "-frames:v", str(len(span))]
    convert = ["-fps_mode", "passthrough", "-sws_flags", "accurate_rnd+full_chroma_int+bitexact", "-pix_fmt", "rgb24"]
    with _as_file(reference.data) as path:
        # PPM has every frame's size. The file's own size does not say how its frames are turned.
        command = ["-i", str(path), "-map", "0:v:0", *choose, *convert, "-c:v", "ppm", "-f", "image2pipe", "pipe:1"]
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


def _run(arguments: list[str]) -> bytes:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", *arguments]
    try:
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_DEADLINE_S
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise UnusableReferenceError(f"ffmpeg did not end within {_DEADLINE_S:.0f} s") from error
    if ended.returncode:
        last = ended.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise UnusableReferenceError(f"{_NOT_ONE} ({last[0] if last else f'ffmpeg ended with {ended.returncode}'})")
    return ended.stdout


@contextmanager
def _as_file(data: bytes) -> Iterator[Path]:
    """Yields a file with the bytes, for ffmpeg, which must go back and forth in it."""
    with tempfile.NamedTemporaryFile(prefix="pab-reference-") as file:
        file.write(data)
        file.flush()
        yield Path(file.name)
