"""What a job has said of its clips so far; written by the rendering thread, read by Dask's threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence


class ClipBoard:
    """The clips in order, which of them have begun, and how they ended. No method waits for more than a short lock."""

    def __init__(self, clip_ids: Sequence[str]) -> None:
        self._changed = threading.Condition()
        self._order = dict.fromkeys(clip_ids)
        self._begun: dict[str, None] = {}
        self._outcomes: dict[str, str] = {}
        self._closed = False
        self._listeners: list[Callable[[], object]] = []

    @property
    def closed(self) -> bool:
        """Whether the job has left."""
        return self._closed

    def start(self, clip_id: str) -> None:
        """Notes that a clip begins."""
        with self._changed:
            self._begun[clip_id] = self._order[clip_id] = None
            self._tell()

    def finish(self, clip_id: str, outcome: str) -> None:
        """Notes how a clip ended; one that never began (skipped) begins and ends at once."""
        with self._changed:
            self._begun[clip_id] = self._order[clip_id] = None
            self._outcomes[clip_id] = outcome
            self._tell()

    def close(self) -> None:
        """Notes that the job leaves."""
        with self._changed:
            self._closed = True
            self._tell()

    def outcome(self, clip_id: str) -> str | None:
        """Returns how a clip ended, or None."""
        return self._outcomes.get(clip_id)

    def has_begun(self, clip_id: str) -> bool:
        """Tells whether a clip has begun, whether or not it has ended."""
        return clip_id in self._begun

    def due(self, num_ahead: int) -> list[str]:
        """Returns the clips that have begun and the next `num_ahead` in order; none ahead before the first has begun."""
        with self._changed:
            begun = list(self._begun)
            ahead = [clip_id for clip_id in self._order if clip_id not in self._begun][:num_ahead]
        return begun + (ahead if begun else [])

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Blocks a thread of Dask's until the condition holds; it is looked at again at every change and `poke`."""
        with self._changed:
            self._changed.wait_for(condition)

    def poke(self) -> None:
        """Makes every waiting thread look at its condition again."""
        with self._changed:
            self._changed.notify_all()

    async def wait_closed(self, timeout_s: float) -> None:
        """Waits until the job leaves, at most `timeout_s`."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        changed = self.listen()
        while not self._closed and (left := deadline - asyncio.get_running_loop().time()) > 0:
            try:
                await asyncio.wait_for(changed.wait(), left)
            except TimeoutError:
                break
            changed.clear()
        self.unlisten()

    def listen(self) -> asyncio.Event:
        """Returns an event of the running loop that is set at every change from now on."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        with self._changed:
            self._listeners = [lambda: loop.call_soon_threadsafe(event.set)]
        return event

    def unlisten(self) -> None:
        """Ends what `listen` began; must come before the loop ends."""
        with self._changed:
            self._listeners = []

    def _tell(self) -> None:
        self._changed.notify_all()
        for listener in self._listeners:
            listener()
