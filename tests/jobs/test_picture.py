"""Pictures of reports: the pixels that a PNG holds, and strips of frames."""

import struct
from pathlib import Path

import numpy as np
import pytest

from jobs.media.picture import png, strip
from jobs.media.reference_access import ReferenceAccess
from jobs.media.reference_files import decode_frames, fetch_reference
from jobs.store.retry import RetryPolicy


def decoded(data: bytes, folder: Path) -> np.ndarray:
    """The pixels of a picture as ffmpeg reads it, which is not what has written it."""
    (folder / "picture").write_bytes(data)
    (frame,) = decode_frames(
        fetch_reference(str(folder / "picture"), ReferenceAccess(roots=(str(folder),)), RetryPolicy()), range(1)
    )
    return frame


def test_a_png_holds_the_pixels(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    data = png(picture)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">IIBB", data[16:26]) == (7, 5, 8, 2), "width, height, 8 bits a channel, RGB"
    assert np.array_equal(decoded(data, tmp_path), picture)


def test_a_strip_shows_first_and_last_frames_in_whole_pixels_and_averaged_blocks(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (9, 8, 80, 3), dtype=np.uint8)
    small = decoded(png(strip([frames])), tmp_path)
    assert small.shape == (16, 6 * 160 + 5 * 4, 3)
    assert np.array_equal(small[:, :160], frames[0].repeat(2, axis=0).repeat(2, axis=1))
    assert np.array_equal(small[:, -160:], frames[-1].repeat(2, axis=0).repeat(2, axis=1))
    assert (small[:, 160:164] == 255).all()
    large = np.random.default_rng(0).integers(0, 256, (2, 6, 320, 3), dtype=np.uint8)
    blocks = large[0].reshape(3, 2, 160, 2, 3).mean(axis=(1, 3))
    assert np.abs(decoded(png(strip([large])), tmp_path)[:, :160] - blocks).max() <= 0.5


@pytest.mark.parametrize("size", [(1, 3, 5), (16, 64, 64), (51, 480, 848)], ids=str)
def test_a_strip_shows_every_clip_in_a_row(size):
    clips = [np.full((*size, 3), value, np.uint8) for value in (10, 200)]
    picture = strip(clips)
    assert picture.dtype == np.uint8
    assert picture[0, 0].tolist() == [10] * 3
    assert picture[-1, -1].tolist() == [200] * 3
    assert picture.shape[1] <= 6 * 320
