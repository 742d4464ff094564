"""Where compiled kernels lie between jobs: a folder of this user on this node, so that only a node's first job compiles.

Inductor and Triton write each file beside its place and rename it, so ranks and jobs may share the folder. A shared
lock is held while a job runs; the first job of a node that finds the folder too large and nobody else in it empties it.
Folders of other versions are emptied when no job has used them for a month.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from pab.own_folder import make_safe, open_regular, own_folder

MAX_CACHE_BYTES = 8 << 30
UNUSED_S = 30 * 86400.0
"""After so long without a job a folder of another version of torch or of our operators is emptied."""
KERNELS = Path(__file__).parent.parent / "kernels"
_LOCK = "in-use"
"""Its time is when a job last began with the folder."""
_VARIABLES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
_LOG = logging.getLogger(__name__)


class CompileCacheError(OSError):
    """A folder is not safe to take compiled code from; the message names it and says what to do."""


def cache_folder(place: str | None, attention: str) -> Path:
    """Makes and returns the folder for this user, version of torch and preferred attention, which kernels are chosen by.

    A digest of our own operators is in its name too: inductor does not notice that an operator's declared results have
    changed, and would run old graphs. `place`: the folder that holds it, e.g. one that nodes share; None for the node's
    temporary folder. What lies there is executed, so no other user may be able to write to it or to replace a folder above
    it. Raises CompileCacheError.
    """
    name = f"torch-{torch.__version__}-attention-{attention}-kernels-{operators_digest(KERNELS)}"
    try:
        if place is None:
            return own_folder("compiled", name, executed=True)
        folder = Path(os.path.realpath(place)) / "compiled" / name
        make_safe(folder)
    except OSError as error:
        raise CompileCacheError(f"{error}; remove or mend it, or name another folder with --compile-cache") from error
    return folder


def operators_digest(folder: Path) -> str:
    """Returns 8 hex digits over the source files in a folder."""
    files = sorted(folder.rglob("*.py"))
    assert files, f"{folder} holds no kernels: its digest would be the same for all of them"
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:8]


@contextmanager
def compile_cache(
    place: str | None,
    attention: str,
    *,
    max_bytes: int = MAX_CACHE_BYTES,
    refused: Callable[[CompileCacheError], object] | None = None,
) -> Iterator[Path]:
    """Keeps what is compiled inside in `cache_folder`, which it makes. Raises CompileCacheError.

    `refused`: is called with the error if `place` is not safe. Then the node's temporary folder is taken: what another user
    has put there ends no job.
    """
    try:
        folder = cache_folder(place, attention)
    except CompileCacheError as error:
        if refused is None or place is None:
            raise
        refused(error)
        folder = cache_folder(None, attention)
    earlier = {name: os.environ.get(name) for name in _VARIABLES}
    with os.fdopen(open_regular(folder / _LOCK), "r+b") as lock:
        os.utime(lock.fileno())
        _empty_if_large(folder, lock.fileno(), max_bytes)
        _empty_unused(folder)
        fcntl.flock(lock, fcntl.LOCK_SH)
        os.environ.update({name: str(folder / part) for name, part in _VARIABLES.items()})
        try:
            yield folder
        finally:
            for name, value in earlier.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _empty_if_large(folder: Path, lock: int, max_bytes: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    size = size_bytes(folder)
    if size > max_bytes:
        _LOG.warning("compile cache %s holds %d bytes, allowed are %d: emptied", folder, size, max_bytes)
        _empty(folder)
    fcntl.flock(lock, fcntl.LOCK_UN)


def _empty_unused(folder: Path) -> None:
    """Empties the folders beside this one that no job has used for long, or leaves them if one is used or cannot be read."""
    for other in folder.parent.glob("torch-*"):
        if other == folder or other.is_symlink() or not any((other / part).exists() for part in _VARIABLES.values()):
            continue
        with suppress(OSError), os.fdopen(open_regular(other / _LOCK), "r+b") as lock:
            if time.time() - os.fstat(lock.fileno()).st_mtime < UNUSED_S:
                continue
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _LOG.info("compile cache %s was not used for a month: emptied", other)
            _empty(other)


def _empty(folder: Path) -> None:
    for part in _VARIABLES.values():
        shutil.rmtree(folder / part, ignore_errors=True)


def size_bytes(folder: Path) -> int:
    """Returns the bytes of all files below a folder; files that disappear during the walk count nothing."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(path) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total
