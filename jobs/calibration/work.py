"""How much of a calibration is done, how long the rest will take, and what a bound on its time leaves out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

TOLD_EVERY_S = 10.0
"""Between two lines of progress."""


@dataclass(slots=True, kw_only=True)
class Work:
    """Work is counted in steps of a clip in which everything computes.

    `expected`: of the whole calibration, as far as it is known. `max_seconds`: the bound; None for none. `tell` takes a line.
    """

    tell: Callable[[str], None]
    max_seconds: float | None = None
    expected: float = 0.0
    done: float = 0.0
    reserved: float = 0.0
    """Of `expected`, what comes last and must not be left out."""
    left_out: list[str] = field(default_factory=list)
    now: Callable[[], float] = time.monotonic
    _began: float | None = None
    _told: float = 0.0

    def begin(self) -> None:
        """Starts the clock: when the model is loaded."""
        self._began = self._told = self.now()

    def add(self, steps: float) -> None:
        """Counts work that is done; now and then tells how much is left."""
        self.done += steps
        at = self.now()
        if self._began is not None and at - self._told >= TOLD_EVERY_S and self.expected > self.done:
            self._told = at
            self.tell(
                f"  {self.done / self.expected:.0%} done, about {self._seconds(self.expected - self.done):.0f} s left"
            )

    def allows(self, steps: float, *, reserved: float = 0.0) -> bool:
        """Whether the bound leaves time for so many steps, and for `reserved` ones that come later."""
        if self.max_seconds is None or self._began is None:
            return True
        return self.now() - self._began + self._seconds(steps + reserved) <= self.max_seconds

    def leave_out(self, what: str, steps: float = 0.0) -> None:
        """Notes what the bound leaves out."""
        self.left_out.append(what)
        self.expected -= steps
        self.tell(f"--max-minutes leaves out: {what}")

    def _seconds(self, steps: float) -> float:
        if self._began is None or not self.done:
            return 0.0
        return steps * (self.now() - self._began) / self.done
