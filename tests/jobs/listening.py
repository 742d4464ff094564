"""A progress listener that writes down what it hears."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class NotedProgress:
    file: Path

    def open(self, worker_name: str, clip_ids: Sequence[str]) -> OpenNotes:
        notes = OpenNotes(self.file)
        notes.write(f"open {worker_name} {','.join(clip_ids)}")
        return notes


class OpenNotes:
    def __init__(self, file: Path) -> None:
        self.file = file
        self._calls = threading.Semaphore(1)

    def write(self, line: str) -> None:
        assert self._calls.acquire(blocking=False), "one call at a time"
        with self.file.open("a") as stream:
            stream.write(line + "\n")
        self._calls.release()

    def started(self, clip_id: str) -> None:
        self.write(f"started {clip_id}")

    def finished(self, clip_id: str, outcome: str, elapsed_s: float) -> None:
        assert elapsed_s >= 0
        self.write(f"finished {clip_id} {outcome}")

    def __enter__(self) -> OpenNotes:
        return self

    def __exit__(self, *error: object) -> None:
        self.write("closed")
