"""Python's search for unused objects, which must not stop a loop that keeps a device at work."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_held() -> Iterator[None]:
    """Has Python look for unused objects after what is inside, not during it.

    Of itself Python looks through all objects now and then. In a process that has compiled graphs this takes half a second
    to a second, in which nothing is queued for the device: one clip of several is then that much slower.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
