"""Small pictures for the report: a strip of frames, and PNG written with zlib alone."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
"""[H, W, 3], RGB."""

_FRAMES = 6
_WIDTH = 160
_GAP = 4


def png(picture_HWC: Picture) -> bytes:
    """Returns the picture as a PNG file (RFC 2083: 8 bit, RGB, no filter)."""
    height, width, _ = picture_HWC.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 1:] = picture_HWC.reshape(height, 3 * width)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def strip(clips_THWC: Sequence[Picture]) -> Picture:
    """Returns one picture: a row per clip, in each the same few frames from first to last, small."""
    num_frames = min(len(clip) for clip in clips_THWC)
    chosen = np.unique(np.linspace(0, num_frames - 1, _FRAMES).round().astype(int))
    return _joined([_joined([_small(clip[t]) for t in chosen], axis=1) for clip in clips_THWC], axis=0)


def _joined(pictures: Sequence[Picture], *, axis: int) -> Picture:
    parts: list[Picture] = []
    for picture in pictures:
        size = list(picture.shape)
        size[axis] = _GAP
        parts += [picture, np.full(size, 255, np.uint8)]
    return np.concatenate(parts[:-1], axis=axis)


def _small(frame_HWC: Picture) -> Picture:
    # Whole blocks are averaged; a narrow frame is enlarged by whole pixels, so that what is seen is what was made.
    height, width, _ = frame_HWC.shape
    block = max(1, width // _WIDTH)
    cut = frame_HWC[: height // block * block or height, : width // block * block]
    if block > 1 and height >= block:
        blocks = cut.reshape(cut.shape[0] // block, block, cut.shape[1] // block, block, 3)
        return blocks.mean(axis=(1, 3)).round().astype(np.uint8)
    scale = max(1, _WIDTH // width)
    return frame_HWC.repeat(scale, axis=0).repeat(scale, axis=1)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
