"""Folders of this user's own below a folder that everybody may write to, such as /tmp.

There another user may make any name first: a folder with our name, a link, a named pipe that blocks whoever opens it. So
every folder is opened without following links and without waiting, and its owner and mode are read from what was opened.
A folder that is not safe is left alone and another one is taken, so nobody can stop a job by what lies in /tmp.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_LOG = logging.getLogger(__name__)
_NAME = "pab-pipeline-"
_OTHER_PLACES = ("/tmp", "/var/tmp", "/dev/shm")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FILE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_LOCK = ".owner"
_WORK = "work"
_NEVER_LOCKED_S = 3600.0
"""A work folder without a lock is left over when it is older: its process died before it could lock it."""


class UnsafeFolderError(OSError):
    """Another user could put something into the folder; the message names it, its owner and its mode."""


def own_folder(*parts: str, executed: bool = False, other_places: Sequence[str] = _OTHER_PLACES) -> Path:
    """Returns the folder `parts` below this user's own one in the folder for temporary files (TMPDIR); makes it.

    Where that cannot be had, because another user was there first, another name or one of `other_places` is taken, and a
    warning says so. `executed`: code that lies there is run, so no folder above it may belong to another user or be
    writable for a group. Raises UnsafeFolderError, with what is wrong in each place, if no place is safe.
    """
    wrong: list[str] = []
    for place in dict.fromkeys([tempfile.gettempdir(), *other_places]):
        try:
            folder = _own_folder_in(Path(place), parts, executed=executed)
        except OSError as error:
            wrong.append(str(error))
            continue
        if wrong:
            _LOG.warning("%s is used instead: %s", folder, "; ".join(wrong))
        return folder
    raise UnsafeFolderError(f"no folder for temporary files is safe: {'; '.join(wrong)}; name one with TMPDIR")


def make_safe(folder: Path) -> None:
    """Makes a folder, and those above it, that only this user can put code into. Raises UnsafeFolderError.

    `folder`: a path without links; a link anywhere in it is refused, since it could be changed after the check.
    """
    with ExitStack() as opened:
        _check_own(_descend(folder, executed=True, opened=opened), folder)


def open_regular(path: Path) -> int:
    """Opens a file to read, write and lock it, and makes it if there is none. Raises UnsafeFolderError for anything else."""
    return _regular(os.open(path, _FILE | os.O_CREAT, 0o600), path)


@contextmanager
def held_folder(prefix: str) -> Iterator[Path]:
    """Yields an empty folder for this process alone, which is removed at the end.

    The process holds a lock on it as long as it lives, so that `remove_left_over` knows which folders are left over: a killed
    process cannot remove its folder, and SLURM does not do it either.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=own_folder(_WORK)))
    with (folder / f"{_LOCK}.new").open("xb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # It is locked before it gets its name, or a process that starts now would take it for left over.
        (folder / f"{_LOCK}.new").rename(folder / _LOCK)
        try:
            yield folder
        finally:
            # Still locked: else another process might remove it at the same time.
            shutil.rmtree(folder, ignore_errors=True)


def remove_left_over() -> list[Path]:
    """Removes the folders of this user's ended processes; returns them. Folders that cannot be removed stay."""
    work, removed = own_folder(_WORK), []
    with ExitStack() as opened:
        above = _open(work, None, opened)
        for name in _names(above):
            with suppress(OSError), ExitStack() as entered:
                if _is_left_over(name, above, entered):
                    shutil.rmtree(name, dir_fd=above)
                    removed.append(work / name)
    return removed


def _is_left_over(name: str, above: int, opened: ExitStack) -> bool:
    """Whether nobody holds a folder; the lock on it is then held until `opened` closes."""
    folder = _open(name, above, opened)
    try:
        lock = _regular(os.open(_LOCK, _FILE, dir_fd=folder), Path(name) / _LOCK)
    except FileNotFoundError:
        return time.time() - os.fstat(folder).st_mtime > _NEVER_LOCKED_S
    opened.callback(os.close, lock)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


def _own_folder_in(place: Path, parts: Sequence[str], *, executed: bool) -> Path:
    place, first = Path(os.path.realpath(place)), f"{_NAME}{os.getuid()}"
    wrong = ""
    with ExitStack() as opened:
        above = _descend(place, executed=executed, opened=opened, make=False)
        # One that was made before because the first name was taken has this user's compiled kernels.
        others = sorted(name for name in _names(above) if name.startswith(f"{first}-"))
        for name in (first, *others, f"{first}-{secrets.token_hex(8)}"):
            if name in others and os.stat(name, dir_fd=above, follow_symlinks=False).st_uid != os.getuid():
                continue
            try:
                folder = _make_own(above, name, place, opened)
            except UnsafeFolderError as error:
                wrong = wrong or str(error)
                continue
            if name != first:
                _LOG.warning("%s is used instead: %s", place / name, wrong)
            path = place / name
            for part in parts:
                folder, path = _make_own(folder, part, path, opened), path / part
            return path
    raise UnsafeFolderError(wrong)


def _make_own(above: int, name: str, place: Path, opened: ExitStack) -> int:
    """Opens a folder of this user's, and makes it if there is none. `place`: path of the opened folder `above`."""
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=above)
    folder = _open_folder(name, above, place, opened)
    _check_own(folder, place / name)
    # Others could not write to it, so what lies there is ours; from now on they cannot look into it either.
    os.fchmod(folder, 0o700)
    return folder


def _check_own(folder: int, path: Path) -> None:
    found = os.fstat(folder)
    if found.st_uid != os.getuid() or found.st_mode & _BY_OTHERS:
        raise UnsafeFolderError(f"{_described(path, found)}, needs to be this user's alone")


def _descend(path: Path, *, executed: bool, opened: ExitStack, make: bool = True) -> int:
    """Opens a folder by way of all folders above it, and checks that no other user can replace any of them.

    In a folder that everybody may write to, the sticky bit (as on /tmp) keeps others from renaming what is not theirs.
    """
    folder, so_far = _open("/", None, opened), Path("/")
    for part in path.parts[1:]:
        _check_above(os.fstat(folder), so_far, executed=executed)
        if make:
            with suppress(FileExistsError):
                os.mkdir(part, 0o700, dir_fd=folder)
        folder, so_far = _open_folder(part, folder, so_far, opened), so_far / part
    if not make:
        _check_above(os.fstat(folder), so_far, executed=executed)
    return folder


def _check_above(found: os.stat_result, path: Path, *, executed: bool) -> None:
    by_others = _BY_OTHERS if executed else stat.S_IWOTH
    open_to_others = found.st_mode & by_others and not found.st_mode & stat.S_ISVTX
    if open_to_others or (executed and found.st_uid not in _trusted_owners()):
        raise UnsafeFolderError(
            f"{_described(path, found)}: other users could replace what lies in it; needs to be this user's or root's, and "
            "writable for nobody else (chmod go-w) or sticky like /tmp"
        )


def _described(path: Path, found: os.stat_result) -> str:
    return f"{path} belongs to user {found.st_uid} with mode {stat.filemode(found.st_mode)}"


def _trusted_owners() -> set[int]:
    trusted = {0, os.getuid()}
    with suppress(OSError, ValueError):
        if Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]:
            # In a container without root's rights, what belongs to root outside is shown as this user's.
            trusted.add(int(Path("/proc/sys/kernel/overflowuid").read_text()))
    return trusted


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _open_folder(name: str, above: int, place: Path, opened: ExitStack) -> int:
    try:
        return _open(name, above, opened)
    except OSError as error:
        # Of a link and of a pipe the system says the same: "not a directory".
        raise UnsafeFolderError(f"{place / name} cannot be opened as a folder ({error.strerror})") from error


def _open(name: str | Path, above: int | None, opened: ExitStack) -> int:
    folder = os.open(name, _FOLDER, dir_fd=above)
    opened.callback(os.close, folder)
    return folder


def _regular(file: int, path: Path) -> int:
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise UnsafeFolderError(f"{path} is not a regular file")
    return file
