"""The bytes of a source as UTF-8: unpacked, and brought over from another encoding. How it is packed is looked at."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import pyarrow as pa

from manifests.errors import ManifestError, Problem
from manifests.read import open_source

PACKED = (".gz", ".bz2", ".xz", ".zst")
"""Endings of packed files."""
HEAD_BYTES = 64 << 10

_GZIP, _BZ2, _XZ, _ZSTD = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_BLOCK_BYTES = 1 << 20
_UNPACKING = (OSError, EOFError, lzma.LZMAError, zlib.error, pa.ArrowInvalid)


class _Blocks(io.RawIOBase):
    """Blocks of bytes, one after another, as a stream; closes `below` with itself."""

    def __init__(self, blocks: Iterator[bytes], below: BinaryIO) -> None:
        super().__init__()
        self._blocks, self._below, self._held = blocks, below, b""

    def readable(self) -> bool:
        """Says that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer as far as one block goes."""
        while not self._held:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._held = block
        count = min(len(buffer), len(self._held))
        buffer[:count], self._held = self._held[:count], self._held[count:]
        return count

    def close(self) -> None:
        """Closes the file below."""
        self._below.close()
        super().close()


def open_text(url: str, *, encoding: str | None = None) -> io.BufferedReader:
    """Opens a source as UTF-8, unpacked if it is packed. Without `encoding` bytes stay as they are, but for UTF-16 and 32.

    Raises ManifestError, also later while it is read, for what cannot be unpacked or is not of the encoding.
    """
    below = open_source(url, cache_type="readahead")
    unpacked = _buffered(_read(_unpacked(_buffered(_read(below, url), below)), url), below)
    head = unpacked.peek(4)[:4]
    known = encoding or next((name for bom, name in _BOMS if head.startswith(bom)), None)
    if known is None or codecs.lookup(known).name == "utf-8":
        return unpacked
    return _buffered(_recoded(unpacked, url, known), below)


def starts_with(url: str, magic: bytes) -> bool:
    """Whether a file begins with these bytes, as it lies there."""
    with open_source(url, cache_type="readahead") as stream:
        return stream.read(len(magic)) == magic


def _buffered(blocks: Iterator[bytes], below: BinaryIO) -> io.BufferedReader:
    return io.BufferedReader(_Blocks(blocks, below), _BLOCK_BYTES)


def _unpacked(stream: io.BufferedReader) -> BinaryIO:
    head = stream.peek(6)[:6]
    if head.startswith(_GZIP):
        return cast("BinaryIO", gzip.GzipFile(fileobj=stream))
    if head.startswith(_BZ2):
        return cast("BinaryIO", bz2.BZ2File(stream))
    if head.startswith(_XZ):
        return cast("BinaryIO", lzma.LZMAFile(stream))
    return pa.CompressedInputStream(stream, "zstd") if head.startswith(_ZSTD) else stream


def _read(stream: BinaryIO, name: str) -> Iterator[bytes]:
    try:
        while block := stream.read(_BLOCK_BYTES):
            yield block
    except _UNPACKING as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        problem = Problem(allowed=f"it cannot be read or unpacked ({first})", action="pack it again, or check access")
        raise ManifestError(name, [problem]) from error


def _recoded(stream: BinaryIO, name: str, encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        while block := stream.read(_BLOCK_BYTES):
            yield decoder.decode(block).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        allowed = f"it is not {encoding} ({error})"
        problem = Problem(allowed=allowed, action="name its encoding, such as --encoding windows-1252")
        raise ManifestError(name, [problem]) from error
