"""Files that a command writes where its user says, after measuring for minutes or hours: writable first, whole at the end."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

from pipeline.exits import UsageError


def make_folder(folder: Path, *, flag: str) -> None:
    """Makes a folder and tries to write there. Raises UsageError naming `flag` and the cause."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"{flag} {folder}: {error.strerror}; name a folder that can be written") from error


def write_result(path: Path, text: str) -> None:
    """Writes a file whole or not at all: a disk that is full costs no older one. Raises UsageError."""
    path = path.resolve()
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with ExitStack() as undo:
        undo.callback(part.unlink, missing_ok=True)
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(path)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}; name a file that can be written") from error
        undo.pop_all()
