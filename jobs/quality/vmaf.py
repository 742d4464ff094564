"""VMAF of two clips, by ffmpeg's filter `libvmaf` with its usual model (vmaf_v0.6.1, made for 1080p): 0 to 100.

It looks at luma on four scales, each half of the one before, and at motion.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from typing import IO

import numpy as np
import numpy.typing as npt

from jobs.media.ffmpeg import FfmpegError, deadline_s, run

Frames = npt.NDArray[np.uint8]

MIN_SIDE = 64
"""Smaller frames leave less than 8 rows on the coarsest of its scales; below 17 rows the filter itself ends with an error."""
_TO_VIEWED = (
    "scale=in_range=full:out_range=limited:out_color_matrix=bt709:flags=accurate_rnd+full_chroma_int,format=yuv444p"
)
_SLOWER = 4
"""It may take this many times as long as encoding two clips before it counts as frozen."""


class NoVmafError(Exception):
    """There is no VMAF of these clips; the message says why."""


def vmaf(reference_THWC: Frames, frames_THWC: Frames, *, threads: int = 1, limit_s: float | None = None) -> float:
    """Returns VMAF of uint8 RGB frames against a reference of the same shape, the mean over frames.

    `limit_s`: seconds after which ffmpeg is killed; by default from the size of the clip. Raises NoVmafError for clips
    that are too small, and when ffmpeg fails; ValueError when the shapes differ.
    """
    if reference_THWC.shape != frames_THWC.shape or frames_THWC.ndim != 4:
        raise ValueError(f"frames {reference_THWC.shape} and {frames_THWC.shape}, need one shape [T, H, W, 3]")
    num_frames, height, width = frames_THWC.shape[:3]
    if min(height, width) < MIN_SIDE:
        raise NoVmafError(f"too small for VMAF: {width}x{height}, needs {MIN_SIDE} pixels on each side")
    # The file has no name, so nothing of it is left behind if this process is killed.
    with tempfile.TemporaryFile() as both:
        try:
            _write(both, reference_THWC, frames_THWC)
            ended = run(
                _arguments(height, width, threads=threads),
                file=both,
                limit_s=limit_s or vmaf_limit_s(num_frames, height, width),
            )
        except (OSError, FfmpegError) as error:
            raise NoVmafError(f"no VMAF: {error}") from error
    told = ended.stderr.decode(errors="replace")
    score = re.search(r"VMAF score: ([\d.]+)", told)
    if ended.returncode or score is None:
        raise NoVmafError(f"no VMAF: ffmpeg ended with {ended.returncode}: {told.strip()[-300:]}")
    return float(score[1])


def vmaf_limit_s(num_frames: int, height: int, width: int) -> float:
    """Returns the seconds after which ffmpeg counts as frozen while it compares clips of this many frames and pixels."""
    return _SLOWER * deadline_s(2 * num_frames, height, width)


def _write(file: IO[bytes], reference_THWC: Frames, frames_THWC: Frames) -> None:
    # Frame by frame, each below its reference: one input, so nothing waits for another pipe, and no second copy in memory.
    for reference, frame in zip(reference_THWC, frames_THWC, strict=True):
        file.write(np.ascontiguousarray(reference).data)
        file.write(np.ascontiguousarray(frame).data)
    file.seek(0)


def _arguments(height: int, width: int, *, threads: int) -> Sequence[str]:
    part = f"crop={width}:{height}:0"
    graph = (
        f"split[a][b];[a]{part}:0,{_TO_VIEWED}[reference];[b]{part}:{height},{_TO_VIEWED}[clip];"
        f"[clip][reference]libvmaf=n_threads={threads}"
    )
    return [
        "-nostats", "-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{width}x{2 * height}", "-i", "pipe:0",
        "-lavfi", graph, "-f", "null", "-",
    ]  # fmt: skip
