"""A file that is written locally and handed on as a whole when it is closed."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from pab.own_folder import held_folder


class Outgoing(io.FileIO):
    """A local temporary file; closing it calls `deliver(path)`, leaving `with` by an error only discards it."""

    def __init__(self, deliver: Callable[[Path], None]) -> None:
        self._held = ExitStack()
        self._path = self._held.enter_context(held_folder("outgoing-")) / "data"
        self._deliver: Callable[[Path], None] | None = deliver
        super().__init__(self._path, "w+b")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._deliver = None
        self.close()

    def close(self) -> None:
        """Closes the file and hands it on, once. Raises what `deliver` raises."""
        if self.closed:
            return
        super().close()
        deliver, self._deliver = self._deliver, None
        try:
            if deliver is not None:
                deliver(self._path)
        finally:
            self._held.close()

    def __del__(self) -> None:
        # Left open and forgotten: what is there so far must not be published.
        self._deliver = None
        self.close()
