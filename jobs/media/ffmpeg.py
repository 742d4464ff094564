"""Runs ffmpeg with a deadline: one that stands still is killed, and its caller hears of it as of any other error."""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import IO

import imageio_ffmpeg

_BASE_S = 60.0
_SLOWEST_PIXELS_PER_S = 250_000.0
"""A tenth of what one slow core manages that others use too: libx264 encodes 2 to 20 million pixels a second."""
_VERSION_S = 20.0
_END_S = 10.0


class FfmpegError(Exception):
    """ffmpeg ended with an error, or not in time; the message says which."""


def deadline_s(num_frames: int, height: int, width: int) -> float:
    """Returns the seconds after which ffmpeg counts as frozen, for a video of this many frames and pixels."""
    return _BASE_S + num_frames * height * width / _SLOWEST_PIXELS_PER_S


@cache
def ffmpeg_version() -> str:
    """Returns the version of the ffmpeg that encodes."""
    try:
        words = run(["-version"], limit_s=_VERSION_S).stdout.decode(errors="replace").split()
    except FfmpegError as error:
        return f"unknown ({error})"
    return words[2] if words[:2] == ["ffmpeg", "version"] else "unknown"


def run(
    arguments: Sequence[str], *, limit_s: float, data: bytes | memoryview = b"", file: IO[bytes] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Runs ffmpeg to its end, whatever its exit code is. Its input is `data`, or an open `file` from where that stands.

    Raises FfmpegError after `limit_s`.
    """
    command = _command(arguments)
    try:
        if file is not None:
            return subprocess.run(command, stdin=file, capture_output=True, check=False, timeout=limit_s)
        return subprocess.run(command, input=data, capture_output=True, check=False, timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        raise FfmpegError(_frozen(limit_s)) from error


Read = Callable[[int], bytes]
"""Returns the next bytes, as many as it is given, or fewer at the end."""


@contextmanager
def reading(arguments: Sequence[str], *, limit_s: float) -> Iterator[Read]:
    """Runs ffmpeg and yields a function that reads its output. Raises FfmpegError after `limit_s`, or if ffmpeg fails.

    Left by an error, it kills ffmpeg and waits for nothing.
    """
    end = time.monotonic() + limit_s
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            _command(arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
        )  # fmt: skip
        try:
            assert process.stdout is not None, "stdout is a pipe"
            yield _reader(process.stdout, end, limit_s)
            process.stdout.close()
            process.wait(timeout=max(_END_S, end - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise FfmpegError(_frozen(limit_s)) from error
        finally:
            if process.stdout is not None:
                process.stdout.close()
            process.kill()
            process.wait()
        if process.returncode:
            errors.seek(0)
            raise FfmpegError(errors.read().decode(errors="replace")[-1000:])


def _reader(pipe: IO[bytes], end: float, limit_s: float) -> Read:
    def read(size: int) -> bytes:
        parts: list[bytes] = []
        missing = size
        while missing:
            ready, _, _ = select.select([pipe], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise FfmpegError(_frozen(limit_s))
            part = os.read(pipe.fileno(), missing)
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    return read


def _command(arguments: Sequence[str]) -> list[str]:
    return [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", *arguments]


def _frozen(limit_s: float) -> str:
    return f"ffmpeg did not end within {limit_s:.0f} s and was killed"
