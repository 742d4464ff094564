"""The size that an image file declares, read from its first bytes. Nothing is decoded."""

from __future__ import annotations

import struct

_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of JPEG after which the size stands."""
_ALONE = frozenset((0x01, 0xFF, *range(0xD0, 0xD9)))
"""Markers of JPEG without a length."""
_WIDTH, _HEIGHT = 256, 257
_FIRST_PIECE = 30


def image_size(data: bytes) -> tuple[int, int] | None:
    """Returns width and height of a PNG, JPEG, WebP, BMP or TIFF file; None if its first bytes do not say them."""
    try:
        if data.startswith(b"\x89PNG"):
            return _two(">II", data, 16)
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data)
        if data.startswith(b"RIFF"):
            return _webp(data[:_FIRST_PIECE])
        if data.startswith(b"BM"):
            old = struct.unpack_from("<I", data, 14)[0] == 12
            width, height = _two("<HH" if old else "<ii", data, 18)
            return abs(width), abs(height)  # a negative height: the first row is the upper one
        if data.startswith((b"II", b"MM")):
            return _tiff(data)
    except (struct.error, IndexError):
        pass
    return None


def _two(form: str, data: bytes, at: int) -> tuple[int, int]:
    first, second = struct.unpack_from(form, data, at)
    return int(first), int(second)


def _jpeg(data: bytes) -> tuple[int, int] | None:
    at = 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in _START_OF_FRAME:
            height, width = _two(">HH", data, at + 5)
            return width, height
        at += 2 + int(struct.unpack_from(">H", data, at + 2)[0])
    return None


def _webp(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int(struct.unpack_from("<I", data, 21)[0])
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = _two("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _tiff(data: bytes) -> tuple[int, int] | None:
    order = "<" if data.startswith(b"II") else ">"
    start = int(struct.unpack_from(f"{order}I", data, 4)[0])
    entries = int(struct.unpack_from(f"{order}H", data, start)[0])
    found: dict[int, int] = {}
    for entry in range(entries):
        at = start + 2 + 12 * entry
        tag, kind = _two(f"{order}HH", data, at)
        if tag in (_WIDTH, _HEIGHT):
            found[tag] = int(struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", data, at + 8)[0])
    return (found[_WIDTH], found[_HEIGHT]) if len(found) == 2 else None
