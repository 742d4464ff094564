"""The job's deadline: from the times of earlier clips it decides whether one more clip fits into the job's time."""

from __future__ import annotations

import threading
import time

_MARGIN = 1.1


class Deadline:
    """The job's end, and measured seconds per token and step. Safe to use from several threads."""

    def __init__(self, *, started: float, deadline_s: float | None) -> None:
        self._end = None if deadline_s is None else started + deadline_s
        self._lock = threading.Lock()
        self._seconds_per_unit = 0.0

    def measured(self, units: float, seconds: float) -> None:
        """Takes the time of a clip of `units` (tokens times steps) that took `seconds` in all. The slowest clip counts."""
        with self._lock:
            self._seconds_per_unit = max(self._seconds_per_unit, seconds / units)

    def fits(self, units: float) -> bool:
        """Whether a clip begun now is expected to end in time, with a margin of 10 %. True as long as nothing is measured."""
        return self._end is None or time.monotonic() + self.expected_s(units) * _MARGIN < self._end

    def expected_s(self, units: float) -> float:
        """Returns the seconds that so much work has taken at the slowest clip so far; 0 as long as nothing is measured."""
        with self._lock:
            return self._seconds_per_unit * units
