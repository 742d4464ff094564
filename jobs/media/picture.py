"""Small pictures for the report: a strip of frames, and PNG files."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

Picture = npt.NDArray[np.uint8]
"""[H, W, 3], RGB."""

_FRAMES = 6
_WIDTH = 160
_GAP = 4
_POSTER = 320


def png(picture_HWC: Picture) -> bytes:
    """Returns the picture as a PNG file, RGB with 8 bits a channel."""
    file = io.BytesIO()
    Image.fromarray(picture_HWC).save(file, "PNG", optimize=True)
    return file.getvalue()


def poster(frames_THWC: Picture) -> bytes:
    """Returns the frame in the middle as a small JPEG file of a few KB, its longer side at most 320 pixels."""
    frame = Image.fromarray(frames_THWC[len(frames_THWC) // 2])
    frame.thumbnail((_POSTER, _POSTER))
    file = io.BytesIO()
    frame.save(file, "JPEG", quality=80, optimize=True)
    return file.getvalue()


def strip(clips_THWC: Sequence[Picture]) -> Picture:
    """Returns one picture: a row per clip, in each the same few frames from first to last, small.

    The clips have frames of one size; the shortest says which frames are shown.
    """
    num_frames = min(len(clip) for clip in clips_THWC)
    chosen = np.unique(np.linspace(0, num_frames - 1, _FRAMES).round().astype(int))
    rows = [[_small(clip[t]) for t in chosen] for clip in clips_THWC]
    width, height = (size + _GAP for size in rows[0][0].size)
    sheet = Image.new("RGB", (len(chosen) * width - _GAP, len(rows) * height - _GAP), "white")
    for row, frames in enumerate(rows):
        for column, frame in enumerate(frames):
            sheet.paste(frame, (column * width, row * height))
    return np.asarray(sheet)


def _small(frame_HWC: Picture) -> Image.Image:
    # Blocks of pixels are averaged; a narrow frame is enlarged by whole pixels, so that what is seen is what was made.
    frame = Image.fromarray(frame_HWC)
    block = frame.width // _WIDTH
    if block > 1:
        return frame.reduce(block)
    scale = max(1, _WIDTH // frame.width)
    return frame.resize((frame.width * scale, frame.height * scale), Image.Resampling.NEAREST)
