"""Which files of a folder this process opens, as the kernel tells: also those that compiled libraries read."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OPEN, _ISDIR = 0x20, 0x40000000
_EVENT = struct.Struct("iIII")


@contextmanager
def opened_below(folder: Path) -> Iterator[set[str]]:
    """Yields a set that holds, after the block, the path below `folder` of every file that was opened in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    watching = libc.inotify_init1(os.O_NONBLOCK)
    assert watching >= 0, os.strerror(ctypes.get_errno())
    try:
        places = {}
        for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
            number = libc.inotify_add_watch(watching, os.fsencode(place), _OPEN)
            assert number >= 0, os.strerror(ctypes.get_errno())
            places[number] = place
        found: set[str] = set()
        yield found
        while events := _read(watching):
            while events:
                number, mask, _, length = _EVENT.unpack_from(events)
                name = events[_EVENT.size : _EVENT.size + length].rstrip(b"\0")
                events = events[_EVENT.size + length :]
                if name and not mask & _ISDIR:
                    found.add((places[number] / os.fsdecode(name)).relative_to(folder).as_posix())
    finally:
        os.close(watching)


def _read(watching: int) -> bytes:
    try:
        return os.read(watching, 1 << 16)
    except BlockingIOError:
        return b""
