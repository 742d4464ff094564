"""Writing local files whole: fsspec's own local filesystem writes them in place and overwrites where it should refuse."""

from __future__ import annotations

import os
import tempfile
import uuid
from contextlib import ExitStack, suppress
from pathlib import Path

_PREFIX = ".writing-"


def write(path: Path, data: bytes) -> None:
    """Replaces a file in one step, making its folder if needed."""
    temporary = _written_beside(path, data)
    temporary.replace(path)


def create(path: Path, data: bytes) -> bool:
    """Makes a file that must not exist yet; returns False if it does. Of many racing writers one gets True."""
    temporary = _written_beside(path, data)
    try:
        # A link fails where the name is taken, on network filesystems too, and shows the file only when it is whole.
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def sizes(folder: Path) -> dict[str, int]:
    """Returns the names of the files in a folder with their sizes in bytes, without those being written.

    A folder that does not exist has none.
    """
    found = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(_PREFIX):
                    # A file may be removed between its name and its size.
                    with suppress(FileNotFoundError):
                        found[entry.name] = entry.stat().st_size
    except FileNotFoundError:
        return {}
    return found


def link(source: Path, path: Path) -> bool:
    """Makes `path` another name of `source` in one step, replacing what it was; False if the disk cannot do that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{_PREFIX}{uuid.uuid4().hex}"
    try:
        os.link(source, temporary)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    # Renaming does nothing where both are already names of one file.
    temporary.replace(path)
    temporary.unlink(missing_ok=True)
    return True


def _written_beside(path: Path, data: bytes) -> Path:
    """Writes data to a temporary file in the folder of `path` and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=_PREFIX, dir=path.parent)
    temporary = Path(name)
    with ExitStack() as undo:
        undo.callback(temporary.unlink, missing_ok=True)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        undo.pop_all()
    return temporary
