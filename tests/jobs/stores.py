"""Filesystems that misbehave, registered with fsspec as `flaky://`: they fail or hang a number of times, then work."""

import threading
from typing import ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class FlakyFileSystem(MemoryFileSystem):
    protocol = "flaky"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    troubles: ClassVar[list[BaseException | str]] = []
    """What happens to the next writes, in order: an error to raise, "hang", or "half" (arrives cut)."""
    release: ClassVar[threading.Event] = threading.Event()

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("flaky://", "memory://"))

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        trouble = self.troubles.pop(0) if self.troubles else None
        if isinstance(trouble, BaseException):
            raise trouble
        if trouble == "hang":
            self.release.wait()
            return
        if trouble == "lost answer":
            super().pipe_file(path, value, mode=mode)
            raise ConnectionResetError("the answer was lost")
        super().pipe_file(path, value[:1] if trouble == "half" else value, mode=mode)


fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
