"""How long a clip takes, from the clips before it: what decides whether one more fits into the job's time."""

from __future__ import annotations

import threading
import time

_MARGIN = 1.1


class Deadline:
    """Seconds per token and step, measured. Safe to use from several threads."""

    def __init__(self, *, started: float, deadline_s: float | None) -> None:
        self._end = None if deadline_s is None else started + deadline_s
        self._lock = threading.Lock()
        self._seconds_per_unit = 0.0

    def measured(self, units: float, seconds: float) -> None:
        """Takes in a clip of `units` (tokens times steps) that took `seconds` in all. The slowest counts."""
        with self._lock:
            self._seconds_per_unit = max(self._seconds_per_unit, seconds / units)

    def fits(self, units: float) -> bool:
        """Whether a clip begun now would end in time, with a tenth to spare; always while nothing is measured."""
        if self._end is None:
            return True
        with self._lock:
            expected_s = self._seconds_per_unit * units * _MARGIN
        return time.monotonic() + expected_s < self._end
