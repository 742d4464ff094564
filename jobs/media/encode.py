"""Frames to an mp4 and back: H.264 in BT.709 (converted and tagged), decoded again and compared before it may be recorded."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jobs.media.ffmpeg import FfmpegError, deadline_s, reading, run
from jobs.media.sound import SOUND_ARGUMENTS, SoundTrack, write_wav, wrong_sound

Frames = npt.NDArray[np.uint8]
"""[T, H, W, 3], RGB."""

_THREADS = 8
"""Of x264, which cuts its work by them: as many as the CPUs that it finds would give each node other pixels."""
_TO_BT709 = "scale=in_range=full:out_range=limited:out_color_matrix=bt709:flags=accurate_rnd+full_chroma_int"
# The filters' own tags win over the encoder's options, so they are set on the frames.
_TAGS = "setparams=range=limited:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
_LUMA = np.array([0.2126, 0.7152, 0.0722])
_MIN_PSNR_DB = 25.0
_MAX_CHROMA_SHIFT = 6.0
_DESCRIBE_S = 60.0


class EncodeError(Exception):
    """The video could not be written, or what was written does not show the frames; the message says what differs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Video:
    """A checked video file. `padding`: columns and rows added, because H.264 wants even sizes. `psnr_db`: of luma.

    `sound`: what is heard with it.
    """

    path: Path
    num_frames: int
    fps: int
    width: int
    height: int
    padding: tuple[int, int]
    crf: int
    psnr_db: float
    size_bytes: int
    sound: SoundTrack | None = None


def encode(
    frames_THWC: Frames,
    path: Path,
    *,
    fps: int,
    crf: int,
    tags: Mapping[str, object],
    limit_s: float | None = None,
    sound: SoundTrack | None = None,
) -> None:
    """Writes an mp4 with the index in front (playable while it loads). Odd sizes get their last row or column twice.

    `tags`: written into the file's comment as JSON; `clip_id` is its title too. `limit_s`: seconds after which ffmpeg is
    killed; by default from the size of the video. `sound`: written with it, as AAC. Raises EncodeError.
    """
    if frames_THWC.ndim != 4 or frames_THWC.shape[-1] != 3 or frames_THWC.dtype != np.uint8 or not frames_THWC.size:
        raise EncodeError(f"frames {frames_THWC.dtype} {frames_THWC.shape}, need uint8 [T, H, W, 3] with no dim empty")
    even = pad_to_even(frames_THWC)
    height, width = even.shape[1:3]
    arguments = [
        "-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{width}x{height}", "-framerate", str(fps), "-i", "pipe:0",
        *(() if sound is None else ("-i", str(_wav(path)), *SOUND_ARGUMENTS)),
        "-vf", f"{_TO_BT709},format=yuv420p,{_TAGS}", "-c:v", "libx264", "-preset", "medium", "-crf", str(crf),
        "-threads", str(_THREADS),
        "-metadata", f"title={tags.get('clip_id', '')}", "-metadata", f"comment={json.dumps(tags, sort_keys=True)}",
        "-movflags", "+faststart", "-fflags", "+bitexact", "-f", "mp4", "-y", str(path),
    ]  # fmt: skip
    try:
        if sound is not None:
            write_wav(sound, _wav(path))
        # Not copied: copying would hold up the thread that queues the next clip's first step.
        data, most_s = np.ascontiguousarray(even).reshape(-1).data, limit_s or deadline_s(*even.shape[:3])
        ended = run(["-loglevel", "error", *arguments], data=data, limit_s=most_s)
    except FfmpegError as error:
        raise EncodeError(str(error)) from error
    finally:
        _wav(path).unlink(missing_ok=True)
    if ended.returncode:
        raise EncodeError(f"ffmpeg ended with {ended.returncode}: {ended.stderr.decode(errors='replace')[-1000:]}")


def _wav(path: Path) -> Path:
    return path.with_name(f"{path.name}.wav")


def check(
    frames_THWC: Frames,
    path: Path,
    *,
    fps: int,
    crf: int,
    limit_s: float | None = None,
    sound: SoundTrack | None = None,
) -> Video:
    """Decodes a video and compares it with the frames and the sound it was made of. `limit_s`: as for `encode`.

    Raises EncodeError when it does not decode, has another number of frames or another size, or shows something else
    (luma below 25 dB PSNR, or a shift in colour), or has no sound or another one where there is to be one.
    """
    even = pad_to_even(frames_THWC)
    num_frames, height, width = even.shape[:3]
    size, rate = _stream_facts(path, limit_s or _DESCRIBE_S)
    if size != (width, height) or abs(rate - fps) > 0.01:
        raise EncodeError(f"{path.name}: video of {size} at {rate:g} fps, needs {(width, height)} at {fps}")
    errors, count = 0.0, 0
    # Closed here: after an error its ffmpeg would live as long as the error is looked at.
    with closing(_decoded(path, width, height, limit_s or deadline_s(num_frames, height, width))) as decoded:
        for planes, frame in zip(decoded, _padded_with_none(even), strict=False):
            if frame is None:
                raise EncodeError(f"{path.name}: more than {num_frames} frames")
            errors += _luma_error(planes[0], frame)
            _check_chroma(planes[1], planes[2], frame, f"{path.name}: frame {count}")
            count += 1
    if count != num_frames:
        raise EncodeError(f"{path.name}: {count} frames, needs {num_frames}")
    mean_error = errors / num_frames
    psnr_db = 99.0 if mean_error == 0 else min(99.0, 10 * math.log10(255**2 / mean_error))
    if psnr_db < _MIN_PSNR_DB:
        raise EncodeError(f"{path.name}: {psnr_db:.1f} dB PSNR against its frames, needs {_MIN_PSNR_DB:g}")
    if sound is not None:
        _check_sound(sound, path, limit_s or deadline_s(num_frames, height, width))
    padding = (width - frames_THWC.shape[2], height - frames_THWC.shape[1])
    return Video(
        path=path, num_frames=num_frames, fps=fps, width=width, height=height, padding=padding, crf=crf,
        psnr_db=round(psnr_db, 2), size_bytes=path.stat().st_size, sound=sound,
    )  # fmt: skip


def _check_sound(sound: SoundTrack, path: Path, limit_s: float) -> None:
    try:
        wrong = wrong_sound(sound, path, describe(path), limit_s)
    except FfmpegError as error:
        raise EncodeError(f"{path.name}: {error}") from error
    if wrong is not None:
        raise EncodeError(f"{path.name}: {wrong}")


def pad_to_even(frames_THWC: Frames) -> Frames:
    """Returns the frames with the last row and column repeated where height or width is odd."""
    odd = [size % 2 for size in frames_THWC.shape[1:3]]
    if not any(odd):
        return frames_THWC
    return np.pad(frames_THWC, ((0, 0), (0, odd[0]), (0, odd[1]), (0, 0)), mode="edge")


def describe(path: Path, *, limit_s: float = _DESCRIBE_S) -> str:
    """Returns what ffmpeg says of a file: container, tags, and the stream with its colours. Raises EncodeError."""
    # Without an output ffmpeg always ends with an error, after it has printed what it found.
    try:
        return run(["-i", str(path)], limit_s=limit_s).stderr.decode(errors="replace")
    except FfmpegError as error:
        raise EncodeError(f"{path.name}: {error}") from error


def _stream_facts(path: Path, limit_s: float) -> tuple[tuple[int, int], float]:
    text = describe(path, limit_s=limit_s)
    stream = next((line for line in text.splitlines() if "Video:" in line), "")
    size, rate = re.search(r", (\d+)x(\d+)[ ,]", stream), re.search(r"([\d.]+) fps", stream)
    if size is None or rate is None:
        raise EncodeError(f"{path.name}: no readable video stream: {text.strip()[-300:]}")
    return (int(size[1]), int(size[2])), float(rate[1])


Planes = tuple[Frames, Frames, Frames]


def _decoded(path: Path, width: int, height: int, limit_s: float) -> Generator[Planes, None, None]:
    """Yields Y, U and V of every frame, as stored: nothing is converted on the way."""
    convert = ["-fps_mode", "passthrough", "-pix_fmt", "yuv420p", "-f", "rawvideo", "pipe:1"]
    luma, chroma = width * height, width * height // 4
    try:
        with reading(["-loglevel", "error", "-i", str(path), *convert], limit_s=limit_s) as read:
            while data := read(luma + 2 * chroma):
                flat = np.frombuffer(data, np.uint8)
                if len(flat) != luma + 2 * chroma:
                    raise EncodeError(f"{path.name}: the last frame is cut off")
                y, u, v = np.split(flat, [luma, luma + chroma])
                yield y.reshape(height, width), u, v
    except FfmpegError as error:
        raise EncodeError(f"{path.name}: does not decode: {error}") from error


def _padded_with_none(frames: Frames) -> Iterator[Frames | None]:
    yield from frames
    yield None


def _luma_error(y: Frames, frame_HWC: Frames) -> float:
    expected = 16 + frame_HWC.astype(np.float64) @ _LUMA * (219 / 255)
    # On the scale of full-range luma, which is usual for PSNR.
    return float(np.square((y - expected) * (255 / 219)).mean())


def _check_chroma(u: Frames, v: Frames, frame_HWC: Frames, where: str) -> None:
    red, green, blue = frame_HWC.reshape(-1, 3).mean(axis=0)
    luma = float(np.array([red, green, blue]) @ _LUMA)
    for name, plane, colour, share in (("U", u, blue, _LUMA[2]), ("V", v, red, _LUMA[0])):
        expected = 128 + (colour - luma) / (2 * (1 - share)) * (224 / 255)
        if abs(float(plane.mean()) - expected) > _MAX_CHROMA_SHIFT:
            raise EncodeError(f"{where}: mean {name} is {plane.mean():.1f}, its pixels give {expected:.1f}")
