"""Names the weights a clip is rendered with, so that a clip's digest changes when they do."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

_SAMPLE_BYTES = 1 << 20


def files_digest(files: Sequence[Path], root: Path) -> str:
    """Returns 16 hex digits over files: their paths below `root`, sizes and contents.

    Files up to 64 MiB are hashed whole; of larger ones 16 evenly spaced blocks of 1 MiB are, so that naming tens of
    gigabytes takes a moment. Links are followed, as loading follows them.
    """
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(root).as_posix()}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= 64 * _SAMPLE_BYTES:
                digest.update(stream.read())
                continue
            for i in range(16):
                stream.seek((size - _SAMPLE_BYTES) * i // 15)
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def weights_digest(path: Path) -> str:
    """Returns `files_digest` of a weights file, or of every file below a folder, whether loading reads it or not.

    Raises FileNotFoundError naming a path that does not exist or holds no file.
    """
    if not path.exists():
        raise FileNotFoundError(f"weights={str(path)!r} does not exist; give a local folder or file, or leave it out")
    files = [path] if path.is_file() else sorted(_files_below(path))
    if not files:
        raise FileNotFoundError(f"weights={str(path)!r} holds no file; give the folder that holds the model's parts")
    return files_digest(files, path.parent if path.is_file() else path)


def _files_below(folder: Path) -> Iterator[Path]:
    """Yields every file below a folder, by the path that leads to it. A link back to a folder above is not entered again."""
    for place, folders, names in os.walk(folder, followlinks=True):
        here = Path(place)
        above = {here.resolve(), *here.resolve().parents}
        folders[:] = [name for name in folders if (here / name).resolve() not in above]
        yield from (here / name for name in names if (here / name).is_file())
