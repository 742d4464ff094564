"""Small files that decide something: written whole, and read with a way on when they are empty or damaged.

A full disk, a killed process or a power cut leaves half of a file that is written in place, or none of it. Here a file
is written beside its place, reaches the disk, and gets its name in one step.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

_LOG = logging.getLogger(__name__)


def write_whole(path: Path, data: bytes) -> None:
    """Replaces a file in one step, readable by its owner only. Raises OSError, and then leaves what was there."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    part = Path(name)
    with ExitStack() as undo:
        undo.callback(part.unlink, missing_ok=True)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
        undo.pop_all()
    _sync_folder(path.parent)


def write_json(path: Path, value: object) -> None:
    """Writes a JSON document by `write_whole`. Raises OSError."""
    write_whole(path, json.dumps(value).encode())


def read_json(path: Path) -> Any | None:
    """Returns a JSON document; None if there is no file, or, with a warning in the log, if it cannot be read as one."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        tell_damaged(path, error)
        return None


def tell_damaged(path: Path, error: object) -> None:
    """Logs that a file is damaged and counts as absent."""
    _LOG.warning("%s is damaged and counts as absent: %s", path, error)


def _sync_folder(folder: Path) -> None:
    # Without it a power cut may undo the rename. Some network file systems do not let a folder be synced.
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        return
    finally:
        os.close(handle)
